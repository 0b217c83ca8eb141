"""What every loss of the DQN family is: pure functions of network outputs.

A `Loss` owns what its kind of outputs decides: the Q-values in them, the targets, and the loss and
priority of each item. Nothing here runs a network, so each loss is checked against a table by hand.
The TD error's NumPy twin for the actors is `common/td.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from qfleet.learner.optimizers import Hyperparameters


class ItemLosses(NamedTuple):
    """What a loss makes of a batch, each float [B]; only `losses` carries a gradient."""

    losses: Tensor
    td_errors_abs: Tensor
    """What the items' priorities are made of, ≥ 0."""
    q_taken: Tensor
    """Q(s, a) of the actions taken."""


class Experience(NamedTuple):
    """What targets are made of, without gradients; "valuing" is the target network, if any."""

    actions: Tensor
    """int64 [B] that were taken."""
    n_step_returns: Tensor
    """float [B]."""
    bootstrap_discounts: Tensor
    """float [B], 0 where the episode terminated: the discount travels in the transition."""
    next_outputs: Tensor
    """float [B, n_outputs] of the valuing network at s′."""
    next_q_choosing: Tensor | None = None
    """float [B, A] at s′, which choose the next action; None: the valuing network's own."""
    outputs: Tensor | None = None
    """float [B, n_outputs] of the valuing network at s, for a loss that `values_current`."""


class Loss(Protocol):
    """From a network's outputs to what is minimized; no state, no parameters."""

    @property
    def values_current(self) -> bool:
        """Whether targets also need the valuing network's outputs at s."""
        ...

    @property
    def chooses_apart(self) -> bool:
        """Whether the next action is chosen in a forward of its own, without double Q too."""
        ...

    def q_values(self, outputs: Tensor) -> Tensor:
        """`float [B, n_outputs] -> [B, A]`."""
        ...

    def targets(self, experience: Experience) -> Tensor:
        """What the outputs are drawn to, `float [B, …]`; called without gradients."""
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


def next_actions(q_valuing: Tensor, q_choosing: Tensor | None) -> Tensor:
    """a*, `int64 [B]`: the best by `q_choosing` (double Q) or, without, by the valuing network.

    The first of equals wins. Source: van Hasselt et al. 2016 (Double DQN), eq. 4.
    """
    return (q_valuing if q_choosing is None else q_choosing).argmax(dim=-1)


def of_actions(per_action: Tensor, actions: Tensor) -> Tensor:
    """The rows of the given actions, `[B, A, N] -> [B, N]`."""
    index = actions.reshape(-1, 1, 1).expand(-1, 1, per_action.shape[-1])
    return per_action.gather(1, index).squeeze(1)


def moved(experience: Experience, values: Tensor) -> Tensor:
    """R + γ·values, `float [B, N]`; values are [N] or [B, N]."""
    returns, discounts = experience.n_step_returns, experience.bootstrap_discounts
    return returns.unsqueeze(1) + discounts.unsqueeze(1) * values
