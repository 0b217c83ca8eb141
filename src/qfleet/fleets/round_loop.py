"""Lockstep: rounds of acting, inserting, learning and publishing, the same in both runtimes.

In round r every slot acts a fixed number of steps with parameters v(r), chunks enter the shards in
slot order, then come the updates that the samples-per-insert ratio allows, then v(r+1) is
published. Nothing here looks at a clock to decide what is computed. With `updates_per_episode` a
round is one episode and its updates: the course's schedule.
"""

from __future__ import annotations

from typing import Protocol

from qfleet.cluster.plan import RoundPlan
from qfleet.common.errors import WaitTimeoutError
from qfleet.fleets.fleet import Fleet
from qfleet.replay_server.rate_limiter import LearningDebt


class RoundObserver(Protocol):
    """Decides, after each round, whether to go on; everything a run writes hangs on it."""

    def after_round(self, fleet: Fleet) -> bool:
        """Record, evaluate and checkpoint what is due; False ends the run."""
        ...

    def blocks_left(self, updates_per_block: int) -> int | None:
        """Blocks until the update budget; None: no budget."""
        ...


def run_rounds(plan: RoundPlan, fleet: Fleet, observer: RoundObserver, debt: LearningDebt) -> None:
    """Rounds until the observer ends the run; a round that a budget cut off is finished first.

    Raises:
        WaitTimeoutError: when a role did not answer in time, with what the round had come to.
    """
    stats = fleet.shard_stats()
    blocks = debt.blocks_to_finish(plan.learning, stats)
    going = True
    while going:
        if not blocks:
            fleet.act(plan.n_env_steps)
            stats = fleet.shard_stats()
            blocks = debt.blocks_due(plan.learning, stats)
        left = observer.blocks_left(plan.updates_per_block)
        now = blocks if left is None else min(blocks, left)
        debt.unfinished_blocks = blocks - now
        if now:
            try:
                fleet.learn(now)
                fleet.publish()
            except WaitTimeoutError as error:
                state = debt.explain(plan.learning, stats)
                raise WaitTimeoutError(f"{error}; {state}") from error
        blocks = 0
        going = observer.after_round(fleet)
