"""The moments that every run passes, in either runtime: it trains, the loop ends, training ends.

Called by the runtimes. Between the last two the roles are still there.
"""

from __future__ import annotations

from qfleet.run.outcome import Outcome
from qfleet.run.phases import FIRST_UPDATE, TRAINING
from qfleet.session.session import Session


def training_begins(session: Session, outcome: Outcome) -> None:
    """Every role is there: budgets of time count from here, the first time."""
    outcome.phases.enter(FIRST_UPDATE)
    session.on_next_update(lambda: outcome.phases.enter(TRAINING))
    if outcome.startup_s == 0.0:
        outcome.startup_s = outcome.phases.total_s
        session.begin()


def loop_ended(session: Session, outcome: Outcome) -> None:
    """Nobody learns any more: what took the time up to here was training."""
    outcome.train_s = session.counters.wall_s
    if session.artifacts is not None and session.directory.best_path.is_dir():
        session.artifacts.film()


def training_ended(session: Session) -> None:
    """Close the metrics and let the curve be drawn while the roles are ended."""
    session.write_row()
    session.writer.close()
    if session.artifacts is not None and session.directory.best_path.is_dir():
        session.artifacts.plot()
