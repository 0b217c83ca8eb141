import numpy as np
import pytest
import torch
from torch.nn import functional

from qfleet.common import td
from qfleet.learner.losses import scalar
from qfleet.learner.losses.base import Experience
from qfleet.learner.losses.huber import huber
from qfleet.learner.losses.mse import mse
from qfleet.learner.losses.scalar import ScalarLoss
from qfleet.learner.optimizers import Hyperparameters

ONE = torch.tensor(1.0)
HYPER = Hyperparameters(ONE, ONE, ONE, ONE, ONE)
LOSSES = {"mse": mse, "huber": huber}
DELTAS = torch.tensor([-3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.5])


@pytest.fixture
def q_next():
    target = torch.tensor([[1.0, 5.0, 3.0], [-2.0, -4.0, -1.0], [7.0, 7.0, 0.0]])
    online = torch.tensor([[9.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 3.0, 3.0]])
    return target, online


def test_bootstrap_values_without_double_are_the_target_maximum(q_next):
    assert scalar.bootstrap_values(q_next[0], None).tolist() == [5.0, -1.0, 7.0]


def test_bootstrap_values_double_are_the_target_value_of_the_online_choice(q_next):
    """The third row's online values are equal: the first of them wins."""
    assert scalar.bootstrap_values(*q_next).tolist() == [1.0, -4.0, 7.0]


def test_td_targets_discount_zero_of_a_terminated_row_cuts_the_bootstrap():
    targets = scalar.td_targets(
        torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0.9, 0.0, 0.81]), torch.tensor([10.0] * 3)
    )

    np.testing.assert_allclose(targets, [10.0, 1.0, 6.1], rtol=1e-6)


def test_td_errors_table():
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    errors = scalar.td_errors(q, torch.tensor([1, 0]), torch.tensor([5.0, 1.0]))

    assert errors.tolist() == [3.0, -2.0]


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (), (1,)])
def test_td_errors_targets_that_would_broadcast_raise(shape):
    with pytest.raises(ValueError, match=r"targets must be \[2\]"):
        scalar.td_errors(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(shape))


@pytest.mark.parametrize("double_q", [True, False])
def test_td_errors_equal_the_actors_numpy_twin(double_q):
    generator = torch.Generator().manual_seed(3)
    q, target, online = torch.randn(3, 40, 4, generator=generator)
    returns, discounts = torch.rand(2, 40, generator=generator)
    actions = torch.randint(4, (40,), generator=generator)

    loss = ScalarLoss(mse)
    experience = Experience(actions, returns, discounts, target, online if double_q else None)
    targets = loss.targets(experience)
    errors = scalar.td_errors(q, actions, targets)
    assert torch.equal(loss.items(q, actions, targets, HYPER).td_errors_abs, errors.abs())

    arrays = [tensor.numpy() for tensor in (q, actions, returns, discounts, target)]
    expected = td.td_errors(*arrays, online.numpy() if double_q else None)
    np.testing.assert_allclose(errors, expected, rtol=1e-5, atol=1e-6)


def test_mse_and_huber_tables():
    assert mse(DELTAS, ONE).tolist() == [9.0, 1.0, 0.0625, 0.0, 0.25, 1.0, 6.25]
    assert huber(DELTAS, ONE).tolist() == [2.5, 0.5, 0.03125, 0.0, 0.125, 0.5, 2.0]
    assert huber(DELTAS, torch.tensor(2.0)).tolist() == [
        4.0, 0.5, 0.03125, 0.0, 0.125, 0.5, 3.0,
    ]  # fmt: skip


def test_losses_equal_torch():
    errors = torch.randn(1_000, generator=torch.Generator().manual_seed(1)) * 3
    zeros = torch.zeros_like(errors)

    torch.testing.assert_close(
        mse(errors, ONE), functional.mse_loss(errors, zeros, reduction="none")
    )
    torch.testing.assert_close(
        huber(errors, ONE), functional.smooth_l1_loss(errors, zeros, reduction="none")
    )
    torch.testing.assert_close(
        huber(errors, torch.tensor(0.7)),
        functional.huber_loss(errors, zeros, delta=0.7, reduction="none"),
    )


@pytest.mark.parametrize(
    ("loss", "delta", "expected"),
    [
        ("mse", 1.0, 2.0 * DELTAS),
        ("huber", 1.0, DELTAS.clamp(-1.0, 1.0)),
        ("huber", 0.5, DELTAS.clamp(-0.5, 0.5)),
    ],
)
def test_items_gradient_is_2_delta_for_mse_and_clipped_delta_for_huber(loss, delta, expected):
    outputs = torch.zeros(7, 2, requires_grad=True)
    actions = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    hyper = Hyperparameters(*(torch.tensor(v) for v in (0.1, 0.9, 0.0, 0.0, delta)))

    items = ScalarLoss(LOSSES[loss]).items(outputs, actions, DELTAS, hyper)
    items.losses.sum().backward()

    taken = outputs.grad.gather(1, actions.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(taken, -expected)
    assert outputs.grad.count_nonzero() == DELTAS.count_nonzero()
    assert items.td_errors_abs.tolist() == DELTAS.abs().tolist()
    assert not items.td_errors_abs.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_scalar_loss_has_one_q_value_per_action_and_keeps_the_batch_shape(name):
    loss, outputs = ScalarLoss(LOSSES[name]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    items = loss.items(outputs, torch.tensor([2, 0]), torch.tensor([3.5, 4.0]), HYPER)

    assert torch.equal(loss.q_values(outputs), outputs)
    assert items.q_taken.tolist() == [3.0, 4.0]
    assert items.td_errors_abs.tolist() == [0.5, 0.0]
    assert items.losses.shape == (2,)
