"""Laps against a clock that is read from a list."""

from __future__ import annotations

from qfleet.common import stage_clock
from qfleet.common.stage_clock import StageClock


def test_laps_belong_to_their_stage_and_gaps_to_none(monkeypatch):
    readings = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(stage_clock.time, "perf_counter", lambda: next(readings))
    clock = StageClock()

    clock.start()
    assert clock.lap("acting") == 1.0
    assert clock.lap("environment") == 2.0
    clock.start()  # 7 seconds that nobody is charged for
    assert clock.lap("acting") == 0.5

    assert clock.seconds == {"acting": 1.5, "environment": 2.0}
