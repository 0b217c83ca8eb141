"""What learner and evaluator tell of themselves. NumPy-free; nothing imports torch or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class BlockStats(NamedTuple):
    """One block of updates: the step at its end, and means over its updates."""

    learner_steps: int
    loss: float
    q_mean: float
    td_error_abs_mean: float
    grad_norm: float


class LearnerStats(NamedTuple):
    """Means over the updates since the previous report, and the learner's counters."""

    learner_steps: int
    params_version: int
    target_syncs: int
    loss: float
    q_mean: float
    td_error_abs_mean: float
    grad_norm: float
    last_blocks: Sequence[Sequence[float]] = ()
    """Of a learner that diverged: `BlockStats` of its last blocks, the one that was not finite
    included."""


class EvaluationRequest(NamedTuple):
    """Evaluate greedily; when the mean reaches `threshold`, confirm it on disjoint seeds."""

    episodes: int
    seed: int
    threshold: float | None
    confirm_episodes: int
    confirm_seed: int


class EvaluationReport(NamedTuple):
    """What an evaluation of one snapshot found; `confirm_*` are None when it was not reached."""

    params_version: int
    learner_step: int
    env_steps: int
    return_mean: float
    return_std: float
    episodes: int
    confirm_return_mean: float | None
    confirm_return_std: float | None
    confirm_episodes: int
    cut_episodes: int = 0
    """Of `episodes`, how many our own limit ended (`eval.max_episode_steps`)."""
    confirm_cut_episodes: int = 0
