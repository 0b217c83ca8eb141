"""Losses of the DQN family as pure functions of network outputs; called by the K-update block.

A `Loss` owns what its kind of outputs decides: the width of the network's head, the Q-values in it,
the targets, and the loss and priority of each item. Nothing here runs a network, so each loss is
checked against a table by hand. The TD error's NumPy twin for the actors is `common/td.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qfleet.learner.optimizers import Hyperparameters


class ItemLosses(NamedTuple):
    """What a loss makes of a batch, each float [B]; only `losses` carries a gradient."""

    losses: Tensor
    td_errors_abs: Tensor
    """What the items' priorities are made of, ≥ 0."""
    q_taken: Tensor
    """Q(s, a) of the actions taken."""


class Loss(Protocol):
    """From a network's outputs to what is minimized; no state, no parameters."""

    def n_outputs(self, n_actions: int) -> int:
        """Width of the network's last layer."""
        ...

    def q_values(self, outputs: Tensor) -> Tensor:
        """`float [B, n_outputs] -> [B, A]`."""
        ...

    def targets(
        self,
        n_step_returns: Tensor,
        bootstrap_discounts: Tensor,
        next_outputs: Tensor,
        q_next_online: Tensor | None,
    ) -> Tensor:
        """What the outputs are drawn to, `float [B, …]`; called without gradients.

        Args:
            n_step_returns: float [B].
            bootstrap_discounts: float [B], 0 where the episode terminated.
            next_outputs: float [B, n_outputs] of the network that values the next observations.
            q_next_online: float [B, A], which chooses the next action; without it the network that
                values it does.
        """
        ...

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """Loss and priority of each item.

        Args:
            outputs: float [B, n_outputs] of the online network, with gradients.
            actions: int64 [B] that were taken.
            targets: From `targets`.
            hyper: For the losses that have a scale of their own.
        """
        ...


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


def mse(td_error: Tensor, huber_delta: Tensor) -> Tensor:
    """δ², element by element: gradient 2δ, as `torch.nn.functional.mse_loss`."""
    del huber_delta
    return td_error * td_error


def huber(td_error: Tensor, huber_delta: Tensor) -> Tensor:
    """½δ² up to `huber_delta`, then linear; equals `smooth_l1_loss` at huber_delta = 1.

    Differs: from `mse` by the factor ½, so at one learning rate it takes half the step.
    """
    magnitude = td_error.abs()
    clipped = torch.minimum(magnitude, huber_delta)
    return clipped * (magnitude - 0.5 * clipped)


@dataclass(frozen=True)
class ScalarLoss:
    """See `Loss`: one output per action, its Q-value; the priority is |δ|."""

    of_td_error: Callable[[Tensor, Tensor], Tensor]
    """`(δ [B], huber_delta) -> [B]`."""

    def n_outputs(self, n_actions: int) -> int:
        """See `Loss`."""
        return n_actions

    def q_values(self, outputs: Tensor) -> Tensor:
        """See `Loss`."""
        return outputs

    def targets(
        self,
        n_step_returns: Tensor,
        bootstrap_discounts: Tensor,
        next_outputs: Tensor,
        q_next_online: Tensor | None,
    ) -> Tensor:
        """See `Loss`."""
        next_values = bootstrap_values(next_outputs, q_next_online)
        return td_targets(n_step_returns, bootstrap_discounts, next_values)

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """See `Loss`."""
        error = td_errors(outputs, actions, targets)
        losses = self.of_td_error(error, hyper.huber_delta)
        error = error.detach()
        return ItemLosses(losses, error.abs(), targets - error)


LOSSES: dict[str, Loss] = {"mse": ScalarLoss(mse), "huber": ScalarLoss(huber)}
"""The one place where a loss gets its name."""
