"""One block at a time: ask the replay, train, return priorities. The lockstep half of learning.

Called by the local runtime and, inside the learner's process, by the lockstep schedule on Ray. The
asynchronous Ray loop has its blocks from `remote_feed.ReplayFeed`.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Protocol

import numpy as np

from qfleet.common.schedules import linear
from qfleet.common.seeding import generator
from qfleet.common.stage_clock import COPYING, LEARNING, StageClock
from qfleet.common.types import (
    Array,
    Capture,
    PriorityUpdate,
    ReplaySample,
    ReplayStats,
    ShardSample,
)
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.sampling import assemble, split_draws


class ReplayReader(Protocol):
    """The learner's view of all replay shards; every call answers or raises within its timeout."""

    def stats(self) -> list[ReplayStats]:
        """Counters of every shard, in shard order, after all inserts and updates so far."""
        ...

    def sample(self, draws: list[int]) -> list[ShardSample]:
        """`draws[i]` draws from shard i, with replacement; shards with 0 draws are left out."""
        ...

    def update_priorities(self, updates: dict[int, PriorityUpdate]) -> None:
        """Apply new |TD errors| per shard; returns when every shard has applied them."""
        ...


class BlockFeed(Protocol):
    """Where blocks come from and where their TD errors go."""

    def blocks(self, learner: Learner) -> Generator[ReplaySample]:
        """Blocks for `learner`, which is told of the fleet's env steps before each."""
        ...

    def give_back(self, sample: ReplaySample, errors: Array) -> None:
        """|TD errors| `float64 [K, B]` of a block."""
        ...


class BlockPlanner:
    """Sizes and draws of a block's request, β of its weights, and where priorities go back to."""

    def __init__(self, plan: LearnerPlan) -> None:
        self._plan = plan
        self.n_batches = plan.updates_per_call
        self.n_draws = self.n_batches * plan.batch_size
        self._rng = generator(plan.seed, "learner.shards")

    def split(self, stats: list[ReplayStats]) -> list[int]:
        """Draws per shard for the next block."""
        return split_draws(self.n_draws, [s.mass for s in stats], self._rng)

    def assemble(
        self, parts: list[ShardSample], stats: list[ReplayStats], learner: Learner
    ) -> ReplaySample:
        """The parts as K batches with importance weights for the learner's current β."""
        masses = [s.mass for s in stats]
        return assemble(parts, masses, self.n_batches, self.importance_exponent(learner), self._rng)

    def importance_exponent(self, learner: Learner) -> float | None:
        """β, linear from its start to 1 at its end; None for uniform replay."""
        plan = self._plan
        if not plan.is_prioritized:
            return None
        start, end = (
            plan.importance_sampling_exponent,
            plan.importance_sampling_end_learner_steps,
        )
        return start if end is None else linear(learner.learner_steps, start, 1.0, end)

    def priority_updates(self, sample: ReplaySample, errors: Array) -> dict[int, PriorityUpdate]:
        """|TD errors| `[K, B]` by shard, in draw order; empty for uniform replay."""
        if not self._plan.is_prioritized:
            return {}
        shards, keys, flat = sample.shards.ravel(), sample.item_keys.ravel(), errors.ravel()
        return {
            int(shard): PriorityUpdate(keys[shards == shard], flat[shards == shard])
            for shard in np.unique(shards)
        }

    def capture(self) -> Capture:
        """The generator that splits and permutes."""
        return Capture({"rng": self._rng.bit_generator.state})

    def restore(self, capture: Capture) -> None:
        """The inverse of `capture`."""
        self._rng.bit_generator.state = capture.meta["rng"]


class LockstepFeed:
    """`BlockFeed` that draws each block after the priority updates of the one before.

    The learner's own part of the time goes to `clock`; the shards count theirs.
    """

    def __init__(self, replay: ReplayReader, planner: BlockPlanner, clock: StageClock) -> None:
        self._replay, self._planner, self._clock = replay, planner, clock

    def blocks(self, learner: Learner) -> Generator[ReplaySample]:
        """See `BlockFeed`; without end."""
        while True:
            stats = self._replay.stats()
            learner.fleet_env_steps = sum(s.env_steps for s in stats)
            parts = self._replay.sample(self._planner.split(stats))
            self._clock.start()
            sample = self._planner.assemble(parts, stats, learner)
            self._clock.lap(COPYING)
            yield sample

    def give_back(self, sample: ReplaySample, errors: Array) -> None:
        """See `BlockFeed`; returns when every shard has applied them."""
        self._replay.update_priorities(self._planner.priority_updates(sample, errors))


def run_blocks(
    learner: Learner,
    planner: BlockPlanner,
    replay: ReplayReader,
    n_blocks: int,
    clock: StageClock,
) -> None:
    """`n_blocks` blocks, each drawn after the priority updates of the one before."""
    feed = LockstepFeed(replay, planner, clock)
    for sample in itertools.islice(feed.blocks(learner), n_blocks):
        clock.start()
        errors = learner.update_block(sample)
        clock.lap(LEARNING)
        feed.give_back(sample, errors)
