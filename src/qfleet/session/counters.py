"""What all roles together have done in a run, over its processes and restarts.

Owned by the session, which feeds it with the fleet's reports; the other parts of the session read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qfleet.fleets.fleet import FleetReport
from qfleet.run_files.summary import Accounting
from qfleet.session.metric_rows import samples_per_insert
from qfleet.session.transition_accounts import TransitionAccounts


@dataclass
class Totals:
    """Counters over the whole run, resumed parts included."""

    episodes: int = 0
    wall_s: float = 0.0
    """Training time of earlier parts."""
    eval_s: float = 0.0
    dropped: int = 0


@dataclass
class Counters:
    """The newest report of the fleet, and what it does not know of the past."""

    clock: Callable[[], float] = time.monotonic
    totals: Totals = field(default_factory=Totals)
    report: FleetReport | None = None
    accounts: TransitionAccounts = field(default_factory=TransitionAccounts)
    actors_wanted: int = 0
    """Slots that are to be filled; `qfleet scale` changes it."""
    highest_params_version: int = 0
    """The newest version that any learner of this run has told of."""

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def begin(self) -> None:
        """Training starts now: its time counts from here."""
        self._started_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Training time of this process."""
        return self.clock() - self._started_s

    @property
    def wall_s(self) -> float:
        """Training time of the whole run."""
        return self.totals.wall_s + self.elapsed_s

    @property
    def env_steps(self) -> int:
        """Env steps behind all accepted chunks."""
        return 0 if self.report is None else self.report.env_steps

    @property
    def learner_steps(self) -> int:
        """Updates so far."""
        return 0 if self.report is None else self.report.learner.learner_steps

    @property
    def samples_per_insert(self) -> float | None:
        """Transitions drawn per transition stored, over the whole run."""
        return None if self.report is None else samples_per_insert(self.report)

    def observe(self, report: FleetReport) -> None:
        """Take in the roles' counters."""
        self.report = report
        self.accounts.observe(report)
        self.saw_params_version(report.learner.params_version)

    def saw_params_version(self, version: int) -> None:
        """Somebody told of that version of the parameters."""
        self.highest_params_version = max(self.highest_params_version, version)

    def rolled_back(self, report: FleetReport) -> None:
        """The roles went on from a cut, or from the beginning; those of before are gone."""
        self.report = report
        self.accounts.observe(report)

    def all_told(self) -> None:
        """Nobody plays any more, and the newest report tells of all that was played."""
        if self.report is not None:
            self.accounts.all_told(self.report)

    def accounting(self) -> Accounting:
        """Where every numbered transition went."""
        return Accounting() if self.report is None else self.accounts.accounting(self.report)

    def capture(self) -> dict[str, Any]:
        """What a resumed run needs of them."""
        return {
            "episodes": self.totals.episodes,
            "wall_s": self.wall_s,
            "eval_s": self.totals.eval_s,
            "dropped": self.totals.dropped,
            "accounts": self.accounts.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self.totals = Totals(
            episodes=state["episodes"],
            wall_s=state["wall_s"],
            eval_s=state["eval_s"],
            dropped=state["dropped"],
        )
        self.accounts.restore(state["accounts"])
