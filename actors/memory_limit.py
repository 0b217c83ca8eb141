"""Ends an actor whose process has grown too large: an environment that leaks is begun anew.

Asked by the actor's Ray shell between two steps. The driver replaces an actor that ends like this
as one that died; what it had played is with the replay server by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from qfleet.common.errors import EnvironmentFailedError, MemoryLimitError

PERIOD_S = 0.5
"""A question costs as much as two env steps."""
_BYTES_PER_GB = 1e9


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    return int(psutil.Process().memory_info().rss)


class MemoryLimit:
    """Of one actor process; None: no limit."""

    def __init__(
        self,
        max_memory_gb: float | None,
        measure_bytes: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_gb, self._measure_bytes, self._clock = max_memory_gb, measure_bytes, clock
        self._next_s = 0.0

    def check_start(self, slot: int) -> None:
        """Refuse a limit that leaves no room for a single step.

        Raises:
            EnvironmentFailedError: when the process is over it already.
        """
        if self._max_gb is not None and self._measure_gb() > self._max_gb:
            raise EnvironmentFailedError(
                f"actor {slot} needs {self._measure_gb():.2f} GB before its first step, more than "
                f"actors.max_memory_gb = {self._max_gb:g} allows: raise it"
            )

    def is_exceeded(self) -> bool:
        """Whether the process is over its limit; measured now and then, else False."""
        if self._max_gb is None or self._clock() < self._next_s:
            return False
        self._next_s = self._clock() + PERIOD_S
        return self._measure_gb() > self._max_gb

    def error(self) -> MemoryLimitError:
        """What ends the actor."""
        return MemoryLimitError(
            f"its process held more than actors.max_memory_gb = {self._max_gb:g} allows: an "
            "environment that leaks?"
        )

    def _measure_gb(self) -> float:
        return self._measure_bytes() / _BYTES_PER_GB
