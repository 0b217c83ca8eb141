"""C51: a categorical distribution of the return over fixed atoms.

Source: Bellemare et al. 2017 (A Distributional Perspective), sec. 4 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qfleet.learner.losses.base import Experience, ItemLosses, Loss, moved, of_actions
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan


@dataclass(frozen=True)
class C51Loss:
    """See `Loss`: N logits per action; loss and priority are KL(target ‖ prediction).

    The gradient is the cross-entropy's of algorithm 1, which differs from the divergence by what
    the targets alone decide. As a priority it is Rainbow's (Hessel et al. 2018, sec. 3).
    """

    n_atoms: int
    value_min: float
    value_max: float
    values_current: bool = False
    chooses_apart: bool = False

    def _atoms(self, like: Tensor) -> Tensor:
        """z, `float [N]`."""
        index = torch.arange(self.n_atoms, dtype=like.dtype, device=like.device)
        return self.value_min + self._step * index

    @property
    def _step(self) -> float:
        """Δz."""
        return (self.value_max - self.value_min) / (self.n_atoms - 1)

    def _logits(self, outputs: Tensor) -> Tensor:
        """`[B, A·N] -> [B, A, N]`."""
        return outputs.reshape(len(outputs), -1, self.n_atoms)

    def q_values(self, outputs: Tensor) -> Tensor:
        """See `Loss`."""
        return torch.softmax(self._logits(outputs), dim=-1) @ self._atoms(outputs)

    def targets(self, experience: Experience) -> Tensor:
        """The projected distributions Φ(R + γz), `float [B, N]`."""
        outputs = experience.next_outputs
        probabilities = torch.softmax(self._logits(outputs), dim=-1)
        choosing = experience.next_q_choosing
        if choosing is None:
            choosing = probabilities @ self._atoms(outputs)
        chosen = of_actions(probabilities, choosing.argmax(dim=-1))
        return self.project(moved(experience, self._atoms(outputs)), chosen)

    def project(self, atoms: Tensor, probabilities: Tensor) -> Tensor:
        """Probabilities of `atoms` shared out to the nearest of z, `float [B, N]`, each [B, N].

        A GPU scatters in any order, which is no longer the same bits; there it is a sum.
        """
        cut = atoms.clamp(self.value_min, self.value_max)
        places = (cut - self.value_min) / self._step  # b of algorithm 1
        return (self.summed if atoms.is_cuda else self.scattered)(places, probabilities)

    def scattered(self, places: Tensor, probabilities: Tensor) -> Tensor:
        """Each p_j to the atoms below and above its place, by how near they are."""
        # The last atom is above the last but one: nothing is lost where a place is an atom.
        lower = places.floor().clamp(max=self.n_atoms - 2)
        above = probabilities * (places - lower)
        index = lower.long()
        shared = torch.zeros_like(probabilities).scatter_add(1, index, probabilities - above)
        return shared.scatter_add(1, index + 1, above)

    def summed(self, places: Tensor, probabilities: Tensor) -> Tensor:
        """The same: atom i gets (1 − |b_j − i|)⁺ of each p_j."""
        index = torch.arange(self.n_atoms, dtype=places.dtype, device=places.device)
        distances = (places.unsqueeze(1) - index.unsqueeze(1)).abs()  # [B, N, N]
        shares = (1.0 - distances).clamp(min=0.0)
        return torch.matmul(shares, probabilities.unsqueeze(-1)).squeeze(-1)

    def items(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, hyper: Hyperparameters
    ) -> ItemLosses:
        """See `Loss`."""
        log_probabilities = torch.log_softmax(of_actions(self._logits(outputs), actions), dim=-1)
        entropies = torch.special.xlogy(targets, targets) - targets * log_probabilities
        losses = entropies.sum(dim=-1)
        q_taken = log_probabilities.detach().exp() @ self._atoms(outputs)
        # Equal distributions may come out a rounding below 0.
        return ItemLosses(losses, losses.detach().clamp(min=0.0), q_taken)


def make(plan: LearnerPlan, n_actions: int) -> Loss:
    """The loss of `plan`."""
    network = plan.network
    assert network.value_min is not None, "checked before"
    assert network.value_max is not None, "checked before"
    return C51Loss(network.n_atoms, network.value_min, network.value_max)
