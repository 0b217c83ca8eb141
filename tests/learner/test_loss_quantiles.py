"""QR-DQN and IQN by hand, and beside the papers' formulas written as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qfleet.common import distributions
from qfleet.common.config import NetworkConfig
from qfleet.learner.losses.base import Experience
from qfleet.learner.losses.iqn import ImplicitQuantileLoss
from qfleet.learner.losses.qr import QuantileLoss
from qfleet.learner.optimizers import Hyperparameters

torch.set_num_threads(1)


def hyper(kappa: float) -> Hyperparameters:
    ones = [torch.tensor(1.0)] * 4
    return Hyperparameters(*ones, torch.tensor(kappa))


def rho(error: float, tau: float, kappa: float) -> float:
    """Dabney et al. 2018, eq. 9 and 10: |τ − 1{u < 0}|·L_κ(u)."""
    size = abs(error)
    huber = 0.5 * error**2 if size <= kappa else kappa * (size - 0.5 * kappa)
    return abs(tau - (1.0 if error < 0 else 0.0)) * huber


def literal_loss(
    quantiles: list[float], taus: list[float], targets: list[float], kappa: float
) -> float:
    """Algorithm 1's last line: Σ_i E_j ρ(T_j − θ_i)."""
    return sum(
        sum(rho(target - theta, tau, kappa) for target in targets) / len(targets)
        for theta, tau in zip(quantiles, taus, strict=True)
    )


def experience_of(n: int, n_outputs: int, chooser: bool) -> tuple[Experience, Tensor]:
    generator = torch.Generator().manual_seed(4)
    outputs, next_outputs = torch.randn(2, n, n_outputs, generator=generator).double() * 2
    return (
        Experience(
            torch.randint(3, (n,), generator=generator),
            torch.randn(n, generator=generator).double(),
            torch.where(torch.rand(n, generator=generator) < 0.3, 0.0, 0.9).double(),
            next_outputs,
            torch.randn(n, 3, generator=generator).double() if chooser else None,
        ),
        outputs,
    )


def test_qr_loss_table() -> None:
    """Two quantiles (τ = ¼, ¾) at 0 and 1 against targets 2 and −1, κ = 1.

    i = 1: δ = 2: ¼·1.5; δ = −1: ¾·0.5; mean 0.375. i = 2: δ = 1: ¾·0.5; δ = −2: ¼·1.5; mean 0.375.
    """
    loss = QuantileLoss(2)
    outputs = torch.tensor([[0.0, 1.0, 9.0, 9.0]])

    items = loss.items(outputs, torch.tensor([0]), torch.tensor([[2.0, -1.0]]), hyper(1.0))

    assert items.losses.tolist() == [0.75]
    assert (items.q_taken.tolist(), items.td_errors_abs.tolist()) == ([0.5], [0.0])
    assert loss.q_values(outputs).tolist() == [[0.5, 9.0]]


def test_quantile_regression_finds_the_quantiles() -> None:
    """Of 1, 2, …, 100, four quantiles at ⅛, ⅜, ⅝ and ⅞; a small κ is the quantile loss itself."""
    theta = torch.zeros(1, 4, requires_grad=True)
    targets = torch.arange(1.0, 101.0).reshape(1, -1)
    optimizer = torch.optim.Adam([theta], lr=0.5)
    for _ in range(600):
        optimizer.zero_grad()
        items = QuantileLoss(4).items(theta, torch.tensor([0]), targets, hyper(0.01))
        items.losses.sum().backward()
        optimizer.step()

    np.testing.assert_allclose(theta.detach()[0], [12.5, 37.5, 62.5, 87.5], atol=1.5)


@pytest.mark.parametrize("kappa", [1.0, 0.5])
@pytest.mark.parametrize("chooser", [True, False])
def test_qr_is_the_papers_algorithm(chooser: bool, kappa: float) -> None:
    loss = QuantileLoss(5)
    experience, outputs = experience_of(30, 15, chooser)
    choosing = experience.next_q_choosing
    targets = loss.targets(experience)
    items = loss.items(outputs, experience.actions, targets, hyper(kappa))

    for row in range(30):
        theta, theta_next = outputs[row].reshape(3, 5), experience.next_outputs[row].reshape(3, 5)
        best = int((theta_next.mean(1) if choosing is None else choosing[row]).argmax())
        reward, discount = experience.n_step_returns[row], experience.bootstrap_discounts[row]
        expected = [float(reward + discount * value) for value in theta_next[best]]
        np.testing.assert_allclose(targets[row], expected)
        taken = theta[experience.actions[row]].tolist()
        middles = [0.1, 0.3, 0.5, 0.7, 0.9]
        np.testing.assert_allclose(items.losses[row], literal_loss(taken, middles, expected, kappa))
        np.testing.assert_allclose(
            items.td_errors_abs[row], abs(np.mean(expected) - np.mean(taken))
        )


@pytest.mark.parametrize("kappa", [1.0, 0.5])
def test_iqn_is_the_papers_algorithm(kappa: float) -> None:
    """Four fractions online, two of the target, each with three values and itself."""
    loss = ImplicitQuantileLoss(n_actions=3)
    experience, outputs = experience_of(30, 4 * 4, chooser=True)
    experience = experience._replace(next_outputs=experience.next_outputs[:, : 2 * 4])
    outputs = outputs.reshape(30, 4, 4)
    outputs[..., 3] = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)).double()

    targets = loss.targets(experience)
    items = loss.items(outputs.flatten(1), experience.actions, targets, hyper(kappa))

    choosing = experience.next_q_choosing
    assert choosing is not None
    for row in range(30):
        best = int(choosing[row].argmax())
        next_values = experience.next_outputs[row].reshape(2, 4)[:, best]
        reward, discount = experience.n_step_returns[row], experience.bootstrap_discounts[row]
        expected = [float(reward + discount * value) for value in next_values]
        taken = outputs[row, :, experience.actions[row]].tolist()
        literal = literal_loss(taken, outputs[row, :, 3].tolist(), expected, kappa) / kappa
        np.testing.assert_allclose(items.losses[row], literal)
    torch.testing.assert_close(loss.q_values(outputs.flatten(1)), outputs[..., :3].mean(1))


@pytest.mark.parametrize("distribution", ["qr", "iqn"])
def test_actors_numpy_twin_has_the_same_q_values(distribution: str) -> None:
    config = NetworkConfig.model_validate({"distribution": distribution, "atoms": 5})
    loss = QuantileLoss(5) if distribution == "qr" else ImplicitQuantileLoss(3)
    outputs = torch.randn(6, 20 if distribution == "iqn" else 15)

    np.testing.assert_allclose(
        distributions.q_values(config, outputs.numpy(), 3), loss.q_values(outputs), rtol=1e-5
    )
