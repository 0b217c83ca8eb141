"""How a run ended, and what its summary needs beside the session's counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qfleet.common.errors import QfleetError
from qfleet.common.types import Array
from qfleet.run.phases import FIRST_UPDATE, TRAINING, PhaseClock
from qfleet.run.session import Session
from qfleet.run_files.resume import ResumePoint


@dataclass
class Outcome:
    """Filled while a run goes on; owned by the driver."""

    started_s: float
    """On the monotonic clock: the command's process or the call of `train`."""
    point: ResumePoint | None = None
    """The checkpoint to go on from."""
    init_params: dict[str, Array] | None = None
    """Another run's parameters to begin with."""
    reason: str = ""
    error: QfleetError | None = None
    crash: Exception | None = None
    startup_s: float = 0.0
    train_s: float = 0.0
    params_sha256: str = ""
    device: str = "cpu"
    resume_kind: str | None = None
    role_restarts: int = 0
    target_syncs: dict[str, Any] = field(default_factory=dict)
    phases: PhaseClock = field(init=False)
    """Where the time since `started_s` went."""

    def __post_init__(self) -> None:
        self.phases = PhaseClock(self.started_s)

    def training_begins(self, session: Session) -> None:
        """Every role is there: budgets of time count from here, the first time."""
        self.phases.enter(FIRST_UPDATE)
        session.on_next_update(lambda: self.phases.enter(TRAINING))
        if self.startup_s == 0.0:
            self.startup_s = self.phases.total_s
            session.begin()

    def loop_ended(self, session: Session) -> None:
        """Nobody learns any more: what took the time up to here was training."""
        self.train_s = session.totals.wall_s + session.elapsed_s
        if session.artifacts is not None and session.directory.best_path.is_dir():
            session.artifacts.film()

    def training_ended(self, session: Session) -> None:
        """Close the metrics and let the curve be drawn while the roles are ended."""
        session.write_row()
        session.writer.close()
        if session.artifacts is not None and session.directory.best_path.is_dir():
            session.artifacts.plot()
