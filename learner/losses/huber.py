"""The Huber loss of TD errors. Source: Mnih et al. 2015, which clips δ to ±1 in the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from qfleet.learner.losses.base import Loss
from qfleet.learner.losses.scalar import ScalarLoss
from qfleet.learner.plan import LearnerPlan


def huber(td_error: Tensor, huber_delta: Tensor) -> Tensor:
    """½δ² up to `huber_delta`, then linear; equals `smooth_l1_loss` at huber_delta = 1.

    Differs: from `mse` by the factor ½, so at one learning rate it takes half the step.
    """
    magnitude = td_error.abs()
    clipped = torch.minimum(magnitude, huber_delta)
    return clipped * (magnitude - 0.5 * clipped)


def make(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of `plan`."""
    return ScalarLoss(huber, plan.munchausen)
