"""Builds a shard's core from its plan; called by both runtimes so that both build the same."""

from __future__ import annotations

from qfleet.common.types import EnvironmentSpec
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import RatioLimiter, check_window
from qfleet.replay_server.replay_shard import ReplayShard


def build_shard(plan: ReplayPlan, spec: EnvironmentSpec, *, run_id: str, shard: int) -> ReplayShard:
    """Shard number `shard`.

    Raises:
        ConfigError: when the limiter's window is too small or the shard cannot hold its minimum.
    """
    limiter = RatioLimiter(
        plan.samples_per_insert, plan.min_size_to_sample, float(plan.limiter_tolerance_samples)
    )
    check_window(limiter, plan.largest_chunk_transitions, plan.largest_request_samples)
    return ReplayShard(plan, spec, limiter, run_id=run_id, shard=shard)
