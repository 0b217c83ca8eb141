"""Builds a shard's core from plain data; called by both runtimes so that both build the same."""

from __future__ import annotations

from qfleet.common.config import Config
from qfleet.common.types import EnvironmentSpec
from qfleet.replay_server.rate_limiter import RatioLimiter, check_window
from qfleet.replay_server.replay_shard import ReplayShard


def build_shard(config: Config, spec: EnvironmentSpec, *, run_id: str, shard: int) -> ReplayShard:
    """Shard number `shard`; the limiter's window and minimum size are split over the shards."""
    replay = config.replay
    chunk, k = config.actors.max_chunk_transitions, config.learner.updates_per_call
    blocks = config.learner.max_blocks_per_request
    if not (
        isinstance(replay.limiter_tolerance_samples, int)
        and isinstance(chunk, int)
        and isinstance(k, int)
        and isinstance(blocks, int)
    ):
        raise TypeError("the configuration must be resolved to numbers first")
    limiter = RatioLimiter(
        replay.samples_per_insert,
        -(-replay.min_size_to_sample // replay.shards),
        float(replay.limiter_tolerance_samples),
    )
    check_window(limiter, chunk, k * blocks * config.learner.batch_size)
    return ReplayShard(
        run_id=run_id,
        shard=shard,
        spec=spec,
        config=replay,
        limiter=limiter,
        seed=config.seed,
    )
