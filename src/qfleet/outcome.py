"""How a run ended, and what its summary needs beside the session's counters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qfleet.artifacts import Artifacts
from qfleet.common.errors import QfleetError
from qfleet.common.types import Array
from qfleet.resume import ResumePoint
from qfleet.session import Session


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
    phases_s: dict[str, float] = field(default_factory=dict)
    target_syncs: dict[str, Any] = field(default_factory=dict)
    artifacts: Artifacts | None = None

    def training_begins(self, session: Session) -> None:
        """Everything is in place: budgets of time count from here."""
        if self.startup_s == 0.0:
            self.startup_s = time.monotonic() - self.started_s
            session.begin()

    def training_ended(self, session: Session) -> None:
        """Close the metrics and let video and curve be made while the roles are ended."""
        session.write_row()
        session.writer.close()
        if session.directory.best_path.is_dir():
            self.artifacts = Artifacts(session.directory.path, session.config.env)
            self.artifacts.start()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's seconds to `phase`."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.phases_s[phase] = self.phases_s.get(phase, 0.0) + time.monotonic() - started_s
