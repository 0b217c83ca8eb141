"""Munchausen targets by hand, beside the paper's formula, and beside the actors' twin."""

from __future__ import annotations

import math

import numpy as np
import torch

from qfleet.common import td
from qfleet.learner.losses.base import Experience
from qfleet.learner.losses.huber import huber
from qfleet.learner.losses.scalar import ScalarLoss
from qfleet.learner.optimizers import Hyperparameters

LOSS = ScalarLoss(huber, is_munchausen=True)
HYPER = Hyperparameters(*(torch.tensor(1.0),) * 5)


def literal_target(
    q: list[float], action: int, reward: float, discount: float, q_next: list[float]
) -> float:
    """Vieillard et al. 2020, eq. 1 with the clipping of sec. 3: α = 0.9, τ = 0.03, l₀ = −1."""

    def policy(values: list[float]) -> list[float]:
        top = max(values)
        powers = [math.exp((value - top) / 0.03) for value in values]
        return [power / sum(powers) for power in powers]

    taken = policy(q)[action]
    bonus = max(0.03 * math.log(taken), -1.0) if taken > 0 else -1.0
    value = sum(
        p * (v - 0.03 * math.log(p)) for p, v in zip(policy(q_next), q_next, strict=True) if p > 0
    )
    return reward + 0.9 * bonus + discount * value


def experience() -> Experience:
    generator = torch.Generator().manual_seed(2)
    q, q_next = torch.randn(2, 40, 3, generator=generator).double() * 0.3
    q[0] = torch.tensor([5.0, 0.0, 0.0])  # an action so bad that the bonus is cut
    actions = torch.randint(3, (40,), generator=generator)
    actions[0] = 1
    rewards = torch.randn(40, generator=generator).double()
    discounts = torch.where(torch.rand(40, generator=generator) < 0.3, 0.0, 0.99).double()
    return Experience(actions, rewards, discounts, q_next, None, q)


def test_targets_by_hand() -> None:
    """Two equal actions: τ ln ½ twice over; a policy that is sure adds nothing."""
    given = Experience(
        torch.tensor([0, 0, 1]),
        torch.tensor([1.0, 1.0, 1.0]),
        torch.tensor([0.5, 0.5, 0.0]),
        torch.tensor([[2.0, 2.0], [2.0, -9.0], [2.0, 2.0]]),
        None,
        torch.tensor([[3.0, 3.0], [9.0, 0.0], [9.0, 0.0]]),
    )
    half = 0.03 * math.log(2.0)

    expected = [1 - 0.9 * half + 0.5 * (2 + half), 1 + 0.5 * 2, 1 - 0.9]
    np.testing.assert_allclose(LOSS.targets(given), expected, rtol=1e-6)


def test_targets_are_the_papers() -> None:
    given = experience()
    assert LOSS.values_current
    assert given.outputs is not None

    targets = LOSS.targets(given)

    for row in range(40):
        literal = literal_target(
            given.outputs[row].tolist(),
            int(given.actions[row]),
            float(given.n_step_returns[row]),
            float(given.bootstrap_discounts[row]),
            given.next_outputs[row].tolist(),
        )
        np.testing.assert_allclose(targets[row], literal, rtol=1e-9)


def test_actors_numpy_twin_has_the_same_errors() -> None:
    given = experience()
    assert given.outputs is not None
    q = torch.randn(40, 3, generator=torch.Generator().manual_seed(8)).double()
    items = LOSS.items(q, given.actions, LOSS.targets(given), HYPER)

    errors = td.munchausen_errors(
        q.numpy(),
        given.actions.numpy(),
        given.n_step_returns.numpy(),
        given.bootstrap_discounts.numpy(),
        given.outputs.numpy(),
        given.next_outputs.numpy(),
    )

    np.testing.assert_allclose(np.abs(errors), items.td_errors_abs, rtol=1e-9)
