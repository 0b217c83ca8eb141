"""IQN: the quantile function of the return, at fractions drawn anew in every update.

Source: Dabney et al. 2018b (Implicit Quantile Networks), eq. 3 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qfleet.learner.losses.base import (
    Experience,
    ItemLosses,
    Loss,
    moved,
    next_actions,
    of_actions,
)
from qfleet.learner.losses.qr import quantile_items
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan


@dataclass(frozen=True)
class ImplicitQuantileLoss:
    """See `Loss`: for each fraction τ a value per action, then τ itself, `[B, T·(A + 1)]`.

    The priority is |δ| of the means.
    Differs: the next action is chosen by K fixed fractions, the middles of equal parts, where the
    paper draws K; the same average, and a row's answer is the same each time.
    """

    n_actions: int
    values_current: bool = False
    chooses_apart: bool = True

    def _values(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles `[B, A, T]` and their fractions `[B, T]`."""
        per_tau = outputs.reshape(len(outputs), -1, self.n_actions + 1)
        return per_tau[..., :-1].transpose(1, 2), per_tau[..., -1]

    def q_values(self, outputs: Tensor) -> Tensor:
        """See `Loss`."""
        return self._values(outputs)[0].mean(dim=-1)

    def targets(self, experience: Experience) -> Tensor:
        """R + γZ_τ′(s′, a*), `float [B, T]`."""
        values, _ = self._values(experience.next_outputs)
        best = next_actions(values.mean(dim=-1), experience.next_q_choosing)
        return moved(experience, of_actions(values, best))

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """See `Loss`."""
        values, taus = self._values(outputs)
        kappa = hyper.huber_delta
        items = quantile_items(of_actions(values, actions), taus.detach(), targets, kappa)
        return items._replace(losses=items.losses / kappa)


def make(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of `plan`."""
    return ImplicitQuantileLoss(n_actions)
