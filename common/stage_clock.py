"""Where a role's time goes: seconds per stage, measured between laps.

Used by the roles' cores and shells; `qfleet.session.bottleneck` compares the stages of all roles.
It only counts: no decision of a core depends on it.
"""

from __future__ import annotations

import time

ACTING = "acting"
"""An actor's network and its choice of actions."""
ENVIRONMENT = "environment"
"""Stepping the sub-environments."""
ENCODING = "encoding"
"""From steps to chunks on their way: n-step windows, priorities, bytes."""
REPLAY = "replay"
"""A shard takes in chunks and new priorities."""
SAMPLING = "sampling"
"""A shard draws, gathers and encodes."""
COPYING = "copying"
"""The learner turns answers into batches, and parameters into snapshots."""
LEARNING = "learning"
"""Updates."""

WAIT = "wait"
"""An actor for acknowledgements, the learner for samples; no stage."""
INSERT_HELD = "insert_held"
SAMPLE_HELD = "sample_held"
"""A shard's rate limiter held the call at the head of that side's queue back; no stages."""


class StageClock:
    """Cumulative seconds per stage; owned by one thread.

    Time between `lap` and the next `start` belongs to no stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since_s = 0.0

    def start(self) -> None:
        """What follows, until the next `lap`, belongs to the stage named there."""
        self._since_s = time.perf_counter()

    def lap(self, stage: str) -> float:
        """Add the time since `start` or the last lap to `stage`; returns it."""
        now_s = time.perf_counter()
        passed_s, self._since_s = now_s - self._since_s, now_s
        self.seconds[stage] = self.seconds.get(stage, 0.0) + passed_s
        return passed_s
