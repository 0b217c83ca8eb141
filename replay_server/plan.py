"""What a replay shard is told: plain numbers, made by `settings/plans.py`."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from qfleet.common.plan_json import PLAN_CONFIG


@dataclass(frozen=True, kw_only=True, config=PLAN_CONFIG)
class ReplayPlan:
    """Of every shard; sizes are those of one shard, not of the whole replay."""

    seed: int
    """The run's root seed."""
    num_cpus: float
    capacity: int
    """Transitions that one shard holds."""
    sampling: Literal["uniform", "prioritized", "rank"]
    priority_exponent: float
    priority_epsilon: float
    compression: Literal["none", "zlib"]
    min_size_to_sample: int
    """Transitions in this shard before it is drawn from."""
    samples_per_insert: float | None
    limiter_tolerance_samples: int
    """Each shard has the whole window: one shard's actors may all be ahead at once."""
    largest_chunk_transitions: int
    largest_request_samples: int
    """What the window must have room for."""
