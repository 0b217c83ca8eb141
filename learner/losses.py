"""Losses of the DQN family as pure functions of Q-values; called by the K-update block.

Nothing here runs a network, so each loss is checked against a table by hand. The TD error's NumPy
twin for the actors is `common/td.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


LOSSES = {"mse": mse, "huber": huber}
"""The one place where a loss gets its name."""
