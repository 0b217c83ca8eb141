"""Squared TD errors."""

from __future__ import annotations

from torch import Tensor

from qfleet.learner.losses.base import Loss
from qfleet.learner.losses.scalar import ScalarLoss
from qfleet.learner.plan import LearnerPlan


def mse(td_error: Tensor, huber_delta: Tensor) -> Tensor:
    """δ², element by element: gradient 2δ, as `torch.nn.functional.mse_loss`."""
    del huber_delta
    return td_error * td_error


def make(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of `plan`."""
    return ScalarLoss(mse, plan.munchausen)
