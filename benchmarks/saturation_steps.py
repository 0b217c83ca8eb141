"""One step of `replay_saturation.py`: what was offered, what came back, and the CPU time it took.

Pure; nothing here needs Ray.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from machine import latency, percentile

from qfleet.bench.bench_record import Measurement

FOLLOWS = 0.95
"""Of the chunks that fell due in a step, so many must have been acknowledged at its end."""

Events = Sequence[tuple[float, float]]
"""(time when the push was due, seconds to its acknowledgement)."""


class CpuTimes(NamedTuple):
    """CPU seconds of each group of processes; `elsewhere` is the rest of the machine."""

    shards: float
    clients: float
    ray: float
    elsewhere: float

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """The difference."""
        return CpuTimes(*(now - then for now, then in zip(self, earlier, strict=True)))


class Step(NamedTuple):
    """One pace, held for a while."""

    offered_per_s: float
    acknowledged_per_s: float
    latencies_ms: tuple[float, ...]
    cpu_s: CpuTimes
    seconds: float
    """From the first push to the last acknowledgement."""

    @property
    def follows(self) -> bool:
        """Whether the shards kept up."""
        return self.acknowledged_per_s >= FOLLOWS * self.offered_per_s

    def cores(self) -> dict[str, float]:
        """Cores that each group kept busy."""
        return {name: round(s / self.seconds, 4) for name, s in self.cpu_s._asdict().items()}

    def cpu_ms_per_call(self) -> dict[str, float]:
        """CPU milliseconds of our own groups per call."""
        own = {k: v for k, v in self.cpu_s._asdict().items() if k != "elsewhere"}
        return {name: round(1000 * s / len(self.latencies_ms), 4) for name, s in own.items()}


def acknowledged_in_time(events: Events, seconds: float) -> int:
    """Chunks that were acknowledged within `seconds` of the first one's due time."""
    end_s = min(due_s for due_s, _ in events) + seconds
    return sum(due_s + took_s <= end_s for due_s, took_s in events)


def paces(first_per_s: float, growth: float, most: int) -> Iterator[float]:
    """Total calls per second of the steps, as far as they may be needed."""
    return (first_per_s * growth**step for step in range(most))


def highest_within(steps: Sequence[Step], p99_bound_ms: float) -> float:
    """Calls per second of the last step in a row with p99 at most the bound; 0 when none."""
    highest = 0.0
    for step in steps:
        if not step.follows or percentile(step.latencies_ms, 99) > p99_bound_ms:
            break
        highest = step.acknowledged_per_s
    return highest


def step_row(cell: str, step: Step) -> Measurement:
    """Latency of one step, with what was acknowledged and who kept how many cores busy."""
    cores = {f"{group} cores": busy for group, busy in step.cores().items()}
    rates = {
        "offered": round(step.offered_per_s, 1),
        "acknowledged": round(step.acknowledged_per_s, 1),
    }
    return latency(f"{cell}, {step.offered_per_s:.0f} calls/s", step.latencies_ms, **rates, **cores)


def cpu_row(name: str, per_call: Sequence[dict[str, float]]) -> Measurement:
    """CPU time per call of all groups together, with each group's median beside it."""
    totals = tuple(sum(groups.values()) for groups in per_call)
    about = {
        group: round(statistics.median(groups[group] for groups in per_call), 4)
        for group in per_call[0]
    }
    return Measurement(name, "ms", totals, about)
