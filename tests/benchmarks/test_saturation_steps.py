"""What counts in a step of the saturation benchmark, with hand-computed figures."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("saturation_steps")
    for name in names:
        sys.modules.pop(name, None)


def make_step(steps: ModuleType, offered: float, acknowledged: float, *latencies_ms: float) -> Any:
    cpu = steps.CpuTimes(shards=1.0, clients=2.0, ray=0.5, elsewhere=0.25)
    return steps.Step(offered, acknowledged, latencies_ms, cpu, 2.0)


def test_only_chunks_acknowledged_within_the_step_count(steps: ModuleType) -> None:
    events = [(10.0, 0.1), (10.5, 0.4), (10.9, 0.2), (11.5, 0.1)]

    assert steps.acknowledged_in_time(events, 1.0) == 2


def test_step_follows_from_95_percent_on(steps: ModuleType) -> None:
    assert make_step(steps, 100.0, 95.0).follows
    assert not make_step(steps, 100.0, 94.9).follows


def test_step_shares_out_cpu_time(steps: ModuleType) -> None:
    held = make_step(steps, 100.0, 100.0, 1.0, 2.0, 3.0, 4.0)

    assert held.cores() == {"shards": 0.5, "clients": 1.0, "ray": 0.25, "elsewhere": 0.125}
    assert held.cpu_ms_per_call() == {"shards": 250.0, "clients": 500.0, "ray": 125.0}


def test_highest_pace_within_the_bound_ends_at_the_first_beyond(steps: ModuleType) -> None:
    highest_within = steps.highest_within
    fine, slow = make_step(steps, 10.0, 10.0, 1.0), make_step(steps, 20.0, 20.0, 60.0)
    late, again = make_step(steps, 30.0, 3.0, 1.0), make_step(steps, 40.0, 40.0, 1.0)

    assert highest_within([fine, slow, again], 50.0) == 10.0
    assert highest_within([fine, again, late], 50.0) == 40.0
    assert highest_within([slow], 50.0) == 0.0


def test_rows_of_a_step_and_of_cpu_times(steps: ModuleType) -> None:
    row = steps.step_row("1 shard, chunk 8", make_step(steps, 100.4, 99.96, 3.0, 1.0, 2.0)).as_row()
    cpu = steps.cpu_row("CPU", [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 5.0}]).as_row()

    assert row["name"] == "1 shard, chunk 8, 100 calls/s"
    assert (row["median"], row["detail"]["p99"]) == (2.0, 3.0)
    assert (
        row["detail"] | {"offered": 100.4, "acknowledged": 100.0, "ray cores": 0.25}
        == (row["detail"])
    )
    assert (cpu["values"], cpu["detail"]) == ([3.0, 8.0], {"a": 2.0, "b": 3.5})


def test_paces_grow_by_the_factor(steps: ModuleType) -> None:
    assert list(steps.paces(100.0, 1.5, 3)) == [100.0, 150.0, 225.0]
