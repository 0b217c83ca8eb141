"""The wall time of one process of a run, split into phases that follow each other without gaps.

Owned by the run's outcome; the composition root and the loops say when the next phase begins. The
names and what they cover are in docs/architecture.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTS = "imports"
RAY = "ray"
ROLES = "roles"
FIRST_UPDATE = "first update"
TRAINING = "training"
EVALUATION = "evaluation"
CHECKPOINT = "last checkpoint"
SHUTDOWN = "shutdown"
FINAL_SCORE = "final score"
ARTIFACTS = "artifacts"


class PhaseClock:
    """Seconds per phase; owned by one thread.

    Invariant: the phases' seconds add up to the time since `started_s`.
    """

    def __init__(self, started_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = self._entered_s = started_s
        self._current = IMPORTS
        self._seconds: dict[str, float] = {IMPORTS: 0.0}

    @property
    def current(self) -> str:
        """The phase that goes on now."""
        return self._current

    def enter(self, phase: str) -> None:
        """End the phase that goes on; one that comes again is added to."""
        now_s = self._clock()
        self._seconds[self._current] += now_s - self._entered_s
        self._entered_s, self._current = now_s, phase
        self._seconds.setdefault(phase, 0.0)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """`phase` for the block, afterwards the former one again."""
        former = self._current
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(former)

    @property
    def total_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_s

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase so far, in the order in which they began."""
        self.enter(self._current)
        return dict(self._seconds)


def process_started_s() -> float:
    """When this process began, on the clock of `time.monotonic`.

    Linux tells it in ticks since the boot. `psutil` adds a boot time in whole seconds to that,
    which would move the start by up to one; elsewhere its answer is exact enough.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        import psutil

        age_s = time.time() - float(psutil.Process().create_time())
    return time.monotonic() - max(0.0, age_s)
