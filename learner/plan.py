"""What the learner is told: plain numbers, made by `settings/plans.py`."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from qfleet.common.config import LossName, NetworkConfig
from qfleet.common.plan_json import PLAN_CONFIG
from qfleet.common.schedules import cosine, linear

Precision = Literal["float32", "bfloat16"]
"""Of convolutions and hidden layers."""
REQUESTS_IN_FLIGHT = 2
"""Sample requests of the learner on their way: one is answered while it trains on the other."""


@dataclass(frozen=True, kw_only=True, config=PLAN_CONFIG)
class LearnerPlan:
    """Of the learner; fields named like keys of `learner.*` mean the same."""

    seed: int
    """The run's root seed."""
    num_cpus: int
    num_gpus: int
    network: NetworkConfig
    # The update
    batch_size: int
    updates_per_call: int
    loss: LossName
    huber_delta: float
    double_q: bool
    munchausen: bool
    target_network: bool
    target_tau: float | None
    max_grad_norm: float | None
    optimizer: Literal["sgd", "adam", "radam"]
    learning_rate: float
    learning_rate_schedule: Literal["constant", "linear", "cosine"]
    learning_rate_end: float
    learning_rate_end_learner_steps: int | None
    momentum: float
    # When what happens
    target_update_period_learner_steps: int
    publish_period_learner_steps: int
    eval_period_learner_steps: int
    max_blocks_per_request: int
    # Prioritized replay
    is_prioritized: bool
    importance_sampling_exponent: float
    """β at the start."""
    importance_sampling_end_learner_steps: int | None
    """β is 1 from here on; None: it stays as it begins."""
    # How long the run is, for what is decided by the time that is left
    max_learner_steps: int | None
    max_env_steps: int | None
    max_wall_s: float | None
    samples_per_insert: float | None
    # How blocks are computed
    frame_bytes: int
    """What the frames of all shards take; 0 where observations are no stacks of frames."""
    precision: Precision
    compile: Literal["auto", "off", "required"]
    """`auto` only in asynchronous runs: it may swap the path on the way, which changes bits."""

    @property
    def is_compiled_on_cpu(self) -> bool:
        """Whether a compiled block pays on a CPU."""
        return self.network.is_compiled_on_cpu and self.precision == "float32"

    @property
    def has_hard_syncs(self) -> bool:
        """Whether the target network is copied from the online one, every so many updates."""
        return self.target_network and self.target_tau is None

    def learning_rate_at(self, learner_steps: int) -> float:
        """Step size of the block that begins after so many updates."""
        if self.learning_rate_schedule == "constant":
            return self.learning_rate
        schedule = linear if self.learning_rate_schedule == "linear" else cosine
        end, end_steps = self.learning_rate_end, self.learning_rate_end_learner_steps
        assert end_steps is not None, "checked before"
        return schedule(learner_steps, self.learning_rate, end, end_steps)

    @property
    def rates(self) -> tuple[float, ...]:
        """In the order of `optimizers.Hyperparameters`; 0 where something is not used."""
        return (
            self.learning_rate,
            self.momentum,
            self.target_tau or 0.0,
            self.max_grad_norm or 0.0,
            self.huber_delta,
        )
