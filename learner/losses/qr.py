"""QR-DQN: N quantiles of the return, by quantile regression.

Source: Dabney et al. 2018 (Distributional RL with Quantile Regression), eq. 9–10, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qfleet.learner.losses.base import (
    Experience,
    ItemLosses,
    Loss,
    moved,
    next_actions,
    of_actions,
)
from qfleet.learner.losses.huber import huber
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan


@dataclass(frozen=True)
class QuantileLoss:
    """See `Loss`: N values per action, its quantiles; the priority is |δ| of their means."""

    n_quantiles: int
    values_current: bool = False
    chooses_apart: bool = False

    def _quantiles(self, outputs: Tensor) -> Tensor:
        """`[B, A·N] -> [B, A, N]`."""
        return outputs.reshape(len(outputs), -1, self.n_quantiles)

    def q_values(self, outputs: Tensor) -> Tensor:
        """See `Loss`."""
        return self._quantiles(outputs).mean(dim=-1)

    def targets(self, experience: Experience) -> Tensor:
        """R + γθ_j(s′, a*), `float [B, N]`."""
        outputs = experience.next_outputs
        best = next_actions(self.q_values(outputs), experience.next_q_choosing)
        return moved(experience, of_actions(self._quantiles(outputs), best))

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """See `Loss`."""
        quantiles = of_actions(self._quantiles(outputs), actions)
        index = torch.arange(self.n_quantiles, dtype=outputs.dtype, device=outputs.device)
        middles = (index + 0.5) / self.n_quantiles
        return quantile_items(quantiles, middles.unsqueeze(0), targets, hyper.huber_delta)


def quantile_items(
    quantiles: Tensor, taus: Tensor, targets: Tensor, huber_delta: Tensor
) -> ItemLosses:
    """Quantile Huber losses, Σ_i mean_j |τ_i − 1{δ_ij < 0}|·L(δ_ij), δ_ij = target_j − θ_i.

    Args:
        quantiles: float [B, N] of the actions taken, with gradients.
        taus: float [B or 1, N], the fraction of each.
        targets: float [B, N′].
        huber_delta: κ.
    """
    errors = targets.unsqueeze(1) - quantiles.unsqueeze(2)  # [B, N, N′]
    weights = (taus.unsqueeze(2) - (errors.detach() < 0).to(errors.dtype)).abs()
    losses = (weights * huber(errors, huber_delta)).mean(dim=2).sum(dim=1)
    q_taken = quantiles.detach().mean(dim=1)
    return ItemLosses(losses, (targets.mean(dim=1) - q_taken).abs(), q_taken)


def make(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of `plan`."""
    return QuantileLoss(plan.network.n_atoms)
