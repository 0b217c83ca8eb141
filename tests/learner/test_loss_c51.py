"""C51 by hand, beside the paper's algorithm letter by letter, and beside its NumPy twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from qfleet.common import distributions
from qfleet.common.config import NetworkConfig
from qfleet.learner.losses.base import Experience
from qfleet.learner.losses.c51 import C51Loss
from qfleet.learner.optimizers import Hyperparameters

torch.set_num_threads(1)

HYPER = Hyperparameters(*(torch.tensor(1.0),) * 5)
THREE = C51Loss(n_atoms=3, value_min=-1.0, value_max=1.0)
CONFIG = NetworkConfig(distribution="c51", atoms=7, value_min=-2.0, value_max=4.0)
SEVEN = C51Loss(7, -2.0, 4.0)


def algorithm_1(
    probabilities: list[float], reward: float, discount: float, v_min: float, v_max: float
) -> list[float]:
    """Bellemare et al. 2017, algorithm 1, one transition, as it is printed.

    With the one slip that everybody mends: an atom that falls on a support point has l = u, and
    would lose its mass.
    """
    n = len(probabilities)
    delta_z = (v_max - v_min) / (n - 1)
    m = [0.0] * n
    for j in range(n):
        z_j = v_min + j * delta_z
        t_z_j = min(max(reward + discount * z_j, v_min), v_max)
        b_j = (t_z_j - v_min) / delta_z
        lower, upper = math.floor(b_j), math.ceil(b_j)
        if lower == upper:
            m[lower] += probabilities[j]
            continue
        m[lower] += probabilities[j] * (upper - b_j)
        m[upper] += probabilities[j] * (b_j - lower)
    return m


def experience_of(n: int, loss: C51Loss, *, double_q: bool) -> tuple[Experience, Tensor]:
    generator = torch.Generator().manual_seed(4)
    outputs, next_outputs = torch.randn(2, n, 3 * loss.n_atoms, generator=generator).double() * 2
    return (
        Experience(
            torch.randint(3, (n,), generator=generator),
            (torch.rand(n, generator=generator).double() - 0.5) * 12,  # beyond both ends too
            torch.where(torch.rand(n, generator=generator) < 0.3, 0.0, 0.9).double(),
            next_outputs,
            torch.randn(n, 3, generator=generator).double() if double_q else None,
        ),
        outputs,
    )


def test_q_values_are_expectations_by_hand() -> None:
    """Logits ln 1, ln 2, ln 1 of atoms −1, 0, 1 and ln 1, ln 1, ln 8."""
    outputs = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0, 8.0]]).log()

    torch.testing.assert_close(THREE.q_values(outputs), torch.tensor([[0.0, 0.7]]))


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        ([-1.0, 0.0, 1.0], [0.2, 0.3, 0.5]),  # each on its own atom
        ([-0.75, 0.25, 0.5], [0.15, 0.525, 0.325]),
        ([-5.0, 9.0, 9.0], [0.2, 0.0, 0.8]),  # cut to the ends
        ([0.5, 0.5, 0.5], [0.0, 0.5, 0.5]),  # terminated: all on one place
    ],
)
def test_project_table(atoms: list[float], expected: list[float]) -> None:
    projected = THREE.project(torch.tensor([atoms]), torch.tensor([[0.2, 0.3, 0.5]]))

    torch.testing.assert_close(projected, torch.tensor([expected]))
    places = torch.tensor([atoms]).clamp(-1.0, 1.0) + 1.0
    summed = THREE.summed(places, torch.tensor([[0.2, 0.3, 0.5]]))  # a GPU's
    torch.testing.assert_close(summed, torch.tensor([expected]))


@pytest.mark.parametrize("double_q", [True, False])
def test_targets_are_algorithm_1(double_q: bool) -> None:
    experience, _ = experience_of(60, SEVEN, double_q=double_q)
    logits = experience.next_outputs.reshape(60, 3, 7)
    z = torch.linspace(-2.0, 4.0, 7, dtype=torch.float64)
    chooser = experience.next_q_choosing
    chooser = (logits.softmax(2) * z).sum(2) if chooser is None else chooser

    targets = SEVEN.targets(experience)

    for row in range(60):
        best = int(chooser[row].argmax())
        expected = algorithm_1(
            logits[row, best].softmax(0).tolist(),
            float(experience.n_step_returns[row]),
            float(experience.bootstrap_discounts[row]),
            -2.0,
            4.0,
        )
        np.testing.assert_allclose(targets[row], expected, atol=1e-12)
    np.testing.assert_allclose(targets.sum(1), 1.0, atol=1e-12)


def test_items_are_the_divergence_with_the_cross_entropys_gradient() -> None:
    experience, outputs = experience_of(20, SEVEN, double_q=True)
    targets = SEVEN.targets(experience)
    ours, theirs = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()

    items = SEVEN.items(ours, experience.actions, targets, HYPER)
    items.losses.sum().backward()
    taken = theirs.reshape(20, 3, 7)[torch.arange(20), experience.actions]
    (-(targets * taken.log_softmax(1)).sum()).backward()

    torch.testing.assert_close(ours.grad, theirs.grad)
    predicted = taken.detach().softmax(1)
    expected = torch.nn.functional.kl_div(predicted.log(), targets, reduction="none").sum(1)
    torch.testing.assert_close(items.losses.detach(), expected)
    torch.testing.assert_close(items.td_errors_abs, expected)
    torch.testing.assert_close(
        items.q_taken, SEVEN.q_values(outputs).gather(1, experience.actions[:, None])[:, 0]
    )


def test_items_of_a_prediction_that_is_right_have_no_loss_and_no_gradient() -> None:
    outputs = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    targets = outputs.detach().softmax(1)

    items = THREE.items(outputs, torch.tensor([0]), targets, HYPER)
    items.losses.sum().backward()

    assert 0.0 <= items.td_errors_abs.item() < 1e-6
    assert outputs.grad.abs().max() < 1e-6


@pytest.mark.parametrize("double_q", [True, False])
def test_actors_numpy_twin_has_the_same_q_values_and_priorities(double_q: bool) -> None:
    experience, outputs = experience_of(50, SEVEN, double_q=double_q)
    items = SEVEN.items(outputs, experience.actions, SEVEN.targets(experience), HYPER)

    chooser = experience.next_q_choosing
    columns = (tensor.numpy() for tensor in experience[:4])
    actions, returns, discounts, next_outputs = columns
    divergences = distributions.divergences(
        CONFIG, outputs.numpy(), actions, returns, discounts, next_outputs,
        None if chooser is None else chooser.numpy(),
    )  # fmt: skip

    np.testing.assert_allclose(divergences, items.td_errors_abs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        distributions.q_values(CONFIG, outputs.numpy(), 3), SEVEN.q_values(outputs), rtol=1e-6
    )
