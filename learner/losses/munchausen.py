"""Munchausen targets: the policy's own log-probability is part of the reward.

Source: Vieillard et al. 2020 (Munchausen Reinforcement Learning), eq. 1 and sec. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qfleet.common.td import MUNCHAUSEN_FLOOR, MUNCHAUSEN_SCALE, MUNCHAUSEN_TEMPERATURE
from qfleet.learner.losses.base import Experience


def munchausen_targets(experience: Experience) -> Tensor:
    """R + α[τ ln π(a|s)] + γ Σ π(a′|s′)(Q(s′, a′) − τ ln π(a′|s′)), `float [B]`.

    π = softmax(Q/τ) of the valuing network; [·] is cut to [l₀, 0]. The sum is τ ln Σ exp(Q/τ).
    Only for one-step transitions: the bonus belongs to a single action.
    """
    assert experience.outputs is not None, "a loss that values_current is given them"
    log_policy = scaled_log_policy(experience.outputs)
    taken = log_policy.gather(1, experience.actions.unsqueeze(1)).squeeze(1)
    bonus = MUNCHAUSEN_SCALE * taken.clamp(MUNCHAUSEN_FLOOR, 0.0)
    scaled = experience.next_outputs / MUNCHAUSEN_TEMPERATURE
    soft_values = MUNCHAUSEN_TEMPERATURE * torch.logsumexp(scaled, dim=-1)
    return experience.n_step_returns + bonus + experience.bootstrap_discounts * soft_values


def scaled_log_policy(q_values: Tensor) -> Tensor:
    """τ ln π, `float [B, A]`."""
    return MUNCHAUSEN_TEMPERATURE * torch.log_softmax(q_values / MUNCHAUSEN_TEMPERATURE, dim=-1)
