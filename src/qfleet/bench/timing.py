"""How long a call takes, repeated: the one stopwatch of `qfleet bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: `repeats` runs of `repeat_s` seconds each, after one call to warm up."""

    repeats: int = 5
    repeat_s: float = 0.25


def rates_per_s(call: Callable[[], object], items_per_call: float, effort: Effort) -> list[float]:
    """Items per second of wall time, one figure per repeat."""
    call()
    rates = []
    for _ in range(effort.repeats):
        calls, started_s = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < effort.repeat_s or not calls:
            call()
            calls += 1
        rates.append(calls * items_per_call / elapsed_s)
    return rates
