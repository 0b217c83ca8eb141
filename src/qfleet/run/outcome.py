"""How a run ended, and what its summary needs beside the session's counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qfleet.common.errors import QfleetError
from qfleet.common.types import Array
from qfleet.run.learner_path import UNKNOWN_PATH, PathAndReason
from qfleet.run.phases import PhaseClock
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
    init_from: str | None = None
    """That run."""
    reason: str = ""
    error: QfleetError | None = None
    crash: Exception | None = None
    startup_s: float = 0.0
    train_s: float = 0.0
    params_sha256: str = ""
    device: str = "cpu"
    is_own_ray: bool = False
    """Whether the run has started the Ray that it is in."""
    learner_path: PathAndReason = UNKNOWN_PATH
    """The one that was meant to be taken."""
    resume_kind: str | None = None
    role_restarts: int = 0
    target_syncs: dict[str, Any] = field(default_factory=dict)
    phases: PhaseClock = field(init=False)
    """Where the time since `started_s` went."""

    def __post_init__(self) -> None:
        self.phases = PhaseClock(self.started_s)
