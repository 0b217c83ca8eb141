"""What an actor and the evaluator are told: plain numbers, made by `settings/plans.py`."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from qfleet.common.config import EnvConfig, NetworkConfig
from qfleet.common.plan_json import PLAN_CONFIG

MAX_UNACKNOWLEDGED_CHUNKS = 2
"""Chunks of one actor on their way: one is stored while the next one travels."""


@dataclass(frozen=True, kw_only=True, config=PLAN_CONFIG)
class ActorPlan:
    """Of every slot of the fleet; fields named like keys of `actors.*` mean the same."""

    seed: int
    """The run's root seed."""
    env: EnvConfig
    network: NetworkConfig
    count: int
    """Slots of the fleet."""
    envs_per_actor: int
    max_episode_steps: int
    """Longer episodes are cut and bootstrapped."""
    max_memory_gb: float | None
    num_cpus: float
    n_step: int
    discount: float
    max_abs_reward: float | None
    reward_scale: float
    epsilon_schedule: Literal["ladder", "linear", "exponential", "constant"]
    epsilon_start: float
    epsilon_end: float
    epsilon_decay_env_steps: int
    epsilon_decay_episodes: int | None
    epsilon_base: float
    epsilon_ladder_exponent: float
    chunk_transitions: int
    max_chunk_transitions: int
    gives_priorities: bool
    """Whether its own |TD errors| go with the chunks."""
    double_q: bool
    munchausen: bool
    has_target_syncs: bool
    """Whether the learner announces targets; without, the online network serves as one."""


@dataclass(frozen=True, kw_only=True, config=PLAN_CONFIG)
class EvaluatorPlan:
    """Of the evaluator."""

    env: EnvConfig
    network: NetworkConfig
    epsilon: float
    max_episode_steps: int
    """Longer episodes are cut."""
    num_cpus: float
