"""What limits a run now, from the roles' measured busy and waiting times.

Pure; called by the session with every report. The verdict is taken over a sliding window, so that
start-up does not colour it for ever.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from qfleet.common.stage_clock import (
    ACTING,
    COPYING,
    ENCODING,
    ENVIRONMENT,
    INSERT_HELD,
    LEARNING,
    REPLAY,
    SAMPLE_HELD,
    SAMPLING,
    WAIT,
)
from qfleet.fleets.fleet import FleetReport

WINDOW_S = 10.0
WAITING_SHARE = 0.3
"""A role that waits for less than this share of its time sets the pace."""
HELD_SHARE = 0.5
"""Of a wait: from here on the rate limiter is what was waited for."""
LIMITER = "limiter"
UNKNOWN = "unknown"

ACTOR_STAGES = (ACTING, ENVIRONMENT, ENCODING)
SHARD_STAGES = (REPLAY, SAMPLING)
LEARNER_STAGES = (LEARNING, COPYING)


class Bottleneck:
    """The verdict over the last `WINDOW_S` seconds of reports."""

    def __init__(self) -> None:
        self._window: collections.deque[tuple[float, FleetReport]] = collections.deque()

    def observe(self, report: FleetReport, now_s: float) -> None:
        """Take in cumulative times; `now_s` is the run's own elapsed time."""
        self._window.append((now_s, report))
        while self._window[-1][0] - self._window[0][0] > WINDOW_S:
            self._window.popleft()

    @property
    def verdict(self) -> str:
        """The stage that sets the pace (`common.stage_clock`), `limiter` or `unknown`.

        In one process, or when roles take turns, nobody waits: the longest stage is named. Else:
        a learner that hardly waits is the limit. One that waits for transitions is limited by the
        actors, unless they are held back at the same time: then the limiter's window is too small
        for what is on its way. One that waits for answers is limited by its replay shards.
        """
        if len(self._window) < 2:
            return UNKNOWN
        first, last = self._window[0][1], self._window[-1][1]
        actors = _difference(_summed(first), _summed(last))
        learner = _difference(first.learner_times, last.learner_times)
        pairs = zip(first.shard_times, last.shard_times, strict=False)
        shards = [_difference(before, after) for before, after in pairs]
        n_actors = max(1, len(last.actors))
        if WAIT not in learner and WAIT not in actors:
            at_once = 1 if last.is_one_process else n_actors
            busy = {stage: learner.get(stage, 0.0) for stage in LEARNER_STAGES}
            busy |= {stage: actors.get(stage, 0.0) / at_once for stage in ACTOR_STAGES}
            busy |= {stage: _most(shards, stage) for stage in SHARD_STAGES}
            return _longest(busy, tuple(busy))
        if _waits_little(learner, LEARNER_STAGES):
            return _longest(learner, LEARNER_STAGES)
        if _most(shards, SAMPLE_HELD) < HELD_SHARE * learner[WAIT]:
            return _longest({stage: _most(shards, stage) for stage in SHARD_STAGES}, SHARD_STAGES)
        if _waits_little(actors, ACTOR_STAGES):
            return _longest(actors, ACTOR_STAGES)
        is_held = _most(shards, INSERT_HELD) >= HELD_SHARE * actors[WAIT] / n_actors
        return LIMITER if is_held else REPLAY


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What passed in each stage; nothing where a counter went back, as an actor's that died."""
    return {stage: max(0.0, s - before.get(stage, 0.0)) for stage, s in after.items()}


def _summed(report: FleetReport) -> dict[str, float]:
    times: dict[str, float] = {}
    for actor in report.actors:
        for stage, seconds in actor.times.items():
            times[stage] = times.get(stage, 0.0) + seconds
    return times


def _most(shards: Sequence[Mapping[str, float]], stage: str) -> float:
    return max((shard.get(stage, 0.0) for shard in shards), default=0.0)


def _waits_little(times: Mapping[str, float], stages: Sequence[str]) -> bool:
    wait = times.get(WAIT, 0.0)
    return wait <= WAITING_SHARE * (wait + sum(times.get(stage, 0.0) for stage in stages))


def _longest(times: Mapping[str, float], stages: Sequence[str]) -> str:
    """The stage that took most of the time; `unknown` when nothing did."""
    longest = max(stages, key=lambda stage: times.get(stage, 0.0))
    return longest if times.get(longest, 0.0) > 0.0 else UNKNOWN
