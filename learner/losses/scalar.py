"""Losses of the TD error: one output per action, its Q-value. Called by `mse.py` and `huber.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qfleet.learner.losses.base import Experience, ItemLosses
from qfleet.learner.losses.munchausen import munchausen_targets
from qfleet.learner.optimizers import Hyperparameters


def bootstrap_values(q_next_target: Tensor, q_next_online: Tensor | None) -> Tensor:
    """Value of each next observation, `float32 [B]`.

    With `q_next_online` the online network chooses the action and the target network values it
    (van Hasselt et al. 2016, Double DQN); without it both are the target network's.
    """
    if q_next_online is None:
        return q_next_target.amax(dim=-1)
    best = q_next_online.argmax(dim=-1, keepdim=True)  # [B, 1]
    return q_next_target.gather(-1, best).squeeze(-1)  # [B, 1] -> [B]


def td_targets(n_step_returns: Tensor, bootstrap_discounts: Tensor, next_values: Tensor) -> Tensor:
    """R + γᵏ(1 − terminated)·V(s′), `float32 [B]`; the discount travels in the transition."""
    return n_step_returns + bootstrap_discounts * next_values


def td_errors(q_values: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    """δ = target − Q(s, a), `float32 [B]`; `actions` is int64 [B].

    Raises:
        ValueError: when `targets` is not [B]: [B, 1] would silently broadcast to [B, B].
    """
    if targets.shape != actions.shape:
        raise ValueError(f"targets must be {list(actions.shape)}, got {list(targets.shape)}")
    return targets - q_values.gather(1, actions.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class ScalarLoss:
    """See `Loss`: one output per action, its Q-value; the priority is |δ|."""

    of_td_error: Callable[[Tensor, Tensor], Tensor]
    """`(δ [B], huber_delta) -> [B]`."""
    is_munchausen: bool = False
    chooses_apart: bool = False

    @property
    def values_current(self) -> bool:
        """See `Loss`."""
        return self.is_munchausen

    def q_values(self, outputs: Tensor) -> Tensor:
        """See `Loss`."""
        return outputs

    def targets(self, experience: Experience) -> Tensor:
        """See `Loss`."""
        if self.is_munchausen:
            return munchausen_targets(experience)
        next_values = bootstrap_values(experience.next_outputs, experience.next_q_choosing)
        return td_targets(experience.n_step_returns, experience.bootstrap_discounts, next_values)

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """See `Loss`."""
        error = td_errors(outputs, actions, targets)
        losses = self.of_td_error(error, hyper.huber_delta)
        error = error.detach()
        return ItemLosses(losses, error.abs(), targets - error)
