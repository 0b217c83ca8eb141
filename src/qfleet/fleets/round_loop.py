"""Lockstep: rounds of acting, inserting, learning and publishing, the same in both runtimes.

In round r every slot acts a fixed number of steps with parameters v(r), chunks enter the shards in
slot order, then come the updates that the samples-per-insert ratio allows, then v(r+1) is
published. Nothing here looks at a clock to decide what is computed. With `updates_per_episode` a
round is one episode and its updates: the course's schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qfleet.common.config import Config
from qfleet.common.errors import ConfigError
from qfleet.common.types import ReplayStats
from qfleet.fleets.fleet import Fleet
from qfleet.replay_server.rate_limiter import EpisodeLimiter


@dataclass(frozen=True)
class RoundPlan:
    """Fixed sizes of a run's rounds."""

    n_env_steps: int | None
    """Env steps per slot and round; None: one episode."""
    updates_per_block: int
    draws_per_block: int
    free_blocks: int | None
    """Blocks per round when the ratio is free; None: what the limiter allows."""


def plan_rounds(config: Config) -> RoundPlan:
    """The sizes that follow from a resolved configuration.

    A round is as long as the env steps that pay for one publish period of updates.
    """
    learner, actors, replay = config.learner, config.actors, config.replay
    per_block = learner.updates_per_call
    if not (isinstance(per_block, int) and isinstance(actors.count, int)):
        raise ConfigError("round sizes need a resolved configuration")
    draws = per_block * learner.batch_size
    if learner.updates_per_episode is not None:
        return RoundPlan(None, per_block, draws, None)
    blocks = max(1, learner.publish_period_learner_steps // per_block)
    if replay.samples_per_insert is None:
        return RoundPlan(max(1, round(draws / actors.count)), per_block, draws, blocks)
    inserts = blocks * draws / replay.samples_per_insert
    return RoundPlan(max(1, round(inserts / actors.count)), per_block, draws, None)


@dataclass
class LearningDebt:
    """How much learning the playing so far pays for.

    Counts from when the replay first held enough: warm-up inserts owe no updates, and neither does
    a refill after a resume without the replay's contents, so there is never a burst.
    """

    inserted: int | None = None
    """Counters at that moment; None while the replay holds too little."""
    sampled: int = 0
    episodes: int = 0

    def blocks_due(self, config: Config, plan: RoundPlan, stats: Sequence[ReplayStats]) -> int:
        """How many blocks this round learns."""
        inserted, sampled = sum(s.inserted for s in stats), sum(s.sampled for s in stats)
        episodes = sum(s.episodes for s in stats)
        if sum(s.size for s in stats) < config.replay.min_size_to_sample:
            self.inserted = None
            return 0
        per_episode = config.learner.updates_per_episode
        if self.inserted is None:
            self.inserted, self.sampled = inserted, sampled
            # The episode that filled the replay is the first that owes updates.
            self.episodes = episodes - 1 if per_episode is not None else episodes
        drawn = sampled - self.sampled
        if per_episode is not None:
            limiter = EpisodeLimiter(per_episode, config.learner.batch_size)
            owed: float = limiter.samples_owed(episodes - self.episodes) - drawn
        elif plan.free_blocks is not None:
            return plan.free_blocks
        else:
            owed = (inserted - self.inserted) * (config.replay.samples_per_insert or 0.0) - drawn
        return max(0, int(owed // plan.draws_per_block))


class RoundObserver(Protocol):
    """Decides, after each round, whether to go on; everything a run writes hangs on it."""

    def after_round(self, fleet: Fleet) -> bool:
        """Record, evaluate and checkpoint what is due; False ends the run."""
        ...

    def blocks_left(self, updates_per_block: int) -> int | None:
        """Blocks until the update budget; None: no budget."""
        ...


def run_rounds(config: Config, fleet: Fleet, observer: RoundObserver, debt: LearningDebt) -> None:
    """Rounds until the observer ends the run."""
    plan = plan_rounds(config)
    going = True
    while going:
        fleet.act(plan.n_env_steps)
        blocks = debt.blocks_due(config, plan, fleet.shard_stats())
        left = observer.blocks_left(plan.updates_per_block)
        blocks = blocks if left is None else min(blocks, left)
        if blocks:
            fleet.learn(blocks)
            fleet.publish()
        going = observer.after_round(fleet)
