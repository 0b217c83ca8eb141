import dataclasses

import pytest
import torch

from qfleet.common.config import NetworkConfig
from qfleet.common.forward import flat_inputs, forward_function
from qfleet.common.network_plan import network_plan
from qfleet.common.networks import StackedNetwork
from qfleet.learner.losses.base import ItemLosses
from qfleet.learner.losses.huber import huber
from qfleet.learner.losses.mse import mse
from qfleet.learner.losses.scalar import ScalarLoss, td_errors, td_targets
from qfleet.learner.optimizers import Hyperparameters, initial_state
from qfleet.learner.update import (
    Batches,
    LearnerState,
    UpdateRule,
    copy_tensors,
    eager_block,
    polyak,
    run_block,
    update_once,
)

torch.set_num_threads(1)  # these networks are too small for more

HYPER = Hyperparameters(*(torch.tensor(v) for v in (0.01, 0.9, 0.25, 1.0, 1.0)))


def rule_and_state(
    *, normalization: str = "batch", **changes: object
) -> tuple[UpdateRule, LearnerState]:
    torch.manual_seed(4)
    config = NetworkConfig(hidden_sizes=(16, 8), normalization=normalization)
    network, target = (StackedNetwork(network_plan(config, (4,), 2)) for _ in range(2))
    fields = {
        "inputs": flat_inputs,
        "loss": ScalarLoss(huber),
        "optimizer": "sgd",
        "double_q": True,
        "target_network": True,
        "polyak": False,
        "clip": False,
        "n_layer_noise": 0,
        "max_target_rows": 1_000,
        **changes,
    }
    rule = UpdateRule(**{"forward": forward_function(network), **fields})
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    state = LearnerState(
        copy_tensors(parameters),
        copy_tensors(buffers),
        copy_tensors(dict(target.named_parameters())) if rule.target_network else {},
        copy_tensors(dict(target.named_buffers())) if rule.target_network else {},
        initial_state(rule.optimizer, list(parameters.values())),
    )
    return rule, state


def batches(k: int = 3, b: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(9)
    return Batches(
        torch.randn(k, b, 4, generator=generator),
        torch.randint(2, (k, b), generator=generator),
        torch.randn(k, b, generator=generator),
        torch.full((k, b), 0.9),
        torch.randn(k, b, 4, generator=generator),
        torch.rand(k, b, generator=generator) + 0.1,
    )


@pytest.mark.parametrize("is_polyak", [False, True])
@pytest.mark.parametrize("target_network", [False, True])
def test_run_block_equals_its_updates_one_by_one(is_polyak, target_network):
    rule, state = rule_and_state(polyak=is_polyak and target_network, target_network=target_network)
    block = batches()

    result = run_block(rule, state._replace(buffers=copy_tensors(state.buffers)), block, HYPER)

    for k in range(3):
        state, errors, loss, q_mean, norm = update_once(rule, state, block.updates()[k], HYPER)
        torch.testing.assert_close(result.td_errors_abs[k], errors)
        torch.testing.assert_close(result.losses[k], loss)
        torch.testing.assert_close(result.q_means[k], q_mean)
        torch.testing.assert_close(result.grad_norms[k], norm)
    assert result.td_errors_abs.shape == (3, 8)
    for mine, other in zip(result.state[:4], state[:4], strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [(24, [24]), (1_000, [24]), (23, [16, 8]), (16, [16, 8]), (8, [8, 8, 8]), (1, [8, 8, 8])],
)
def test_run_block_constant_target_takes_no_more_rows_at_once_than_the_rule_allows(
    max_rows, expected
):
    rule, state = rule_and_state(double_q=False, max_target_rows=max_rows)
    rows = []

    def forward(parameters, buffers, inputs, training, noise=None):
        if not training:
            rows.append(len(inputs))
        return rule.forward(parameters, buffers, inputs, training, noise)

    counting = dataclasses.replace(rule, forward=forward)
    got = eager_block(counting)(state, batches(), HYPER)

    assert rows == expected
    whole = eager_block(dataclasses.replace(rule, max_target_rows=24))(state, batches(), HYPER)
    torch.testing.assert_close(got.td_errors_abs, whole.td_errors_abs)


@pytest.mark.parametrize("target_network", [False, True])
def test_run_block_observations_reach_the_network_through_the_rules_inputs_alone(target_network):
    """Bytes of pixels of any shape, scaled where the rule says so, train as scaled floats do."""

    def scaled(observations):
        return observations.flatten(1) / 255.0

    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2, 3, 8, 2, 2), generator=generator, dtype=torch.uint8)
    stored = batches()._replace(observations=pixels[0], next_observations=pixels[1])
    floats = batches()._replace(
        observations=pixels[0].flatten(2) / 255.0, next_observations=pixels[1].flatten(2) / 255.0
    )
    rule, state = rule_and_state(target_network=target_network)

    got = eager_block(dataclasses.replace(rule, inputs=scaled))(state, stored, HYPER)
    expected = eager_block(rule)(state, floats, HYPER)

    torch.testing.assert_close(got.state[:4], expected.state[:4], rtol=0, atol=0)
    torch.testing.assert_close(got[1:], expected[1:], rtol=0, atol=0)


@pytest.mark.parametrize("is_polyak", [False, True])
def test_run_block_noise_reaches_each_forward_of_each_update(is_polyak):
    rule, state = rule_and_state(polyak=is_polyak)
    noise = torch.arange(9.0).reshape(3, 3, 1)  # [K, forward, N]
    seen = []

    def noisy(parameters, buffers, inputs, training, noise=None):
        seen.append(("online" if parameters is not target else "target", training, noise.item()))
        return rule.forward(parameters, buffers, inputs, training) + noise * inputs[:, :1]

    target = state.target_parameters
    rule_with_noise = dataclasses.replace(rule, forward=noisy, n_layer_noise=1)
    result = eager_block(rule_with_noise)(state, batches()._replace(noise=noise), HYPER)

    if not is_polyak:
        assert seen == [
            call
            for k in range(3)
            for call in (
                ("target", False, 3 * k + 2.0),
                ("online", False, 3 * k + 1.0),
                ("online", True, 3 * k + 0.0),
            )
        ]
    assert len(seen) == 9
    state = state._replace(buffers=copy_tensors(state.buffers))
    for k in range(3):
        target = state.target_parameters
        batch = batches().updates()[k]._replace(noise=noise[k])
        state, errors, *_ = update_once(rule_with_noise, state, batch, HYPER)
        torch.testing.assert_close(result.td_errors_abs[k], errors, rtol=0, atol=0)
    quiet = eager_block(rule)(rule_and_state(polyak=is_polyak)[1], batches(), HYPER)
    assert not torch.allclose(quiet.td_errors_abs, result.td_errors_abs)


def test_forward_that_takes_no_noise_refuses_it():
    rule, state = rule_and_state()
    with pytest.raises(TypeError, match=r"takes no noise, got \[5\]"):
        run_block(rule, state, batches()._replace(noise=torch.zeros(3, 3, 5)), HYPER)


class TwoOutputsPerAction:
    """A Q-value is the sum of two outputs, and the priority is twice the error plus one."""

    values_current = chooses_apart = False

    def q_values(self, outputs):
        return outputs.reshape(len(outputs), -1, 2).sum(dim=-1)

    def targets(self, experience):
        q_next = self.q_values(experience.next_outputs)
        assert q_next.shape == experience.next_q_choosing.shape == (8, 2)
        best = experience.next_q_choosing.argmax(dim=-1, keepdim=True)
        values = q_next.gather(-1, best).squeeze(-1)
        return td_targets(experience.n_step_returns, experience.bootstrap_discounts, values)

    def items(self, outputs, actions, targets, hyper):
        error = td_errors(self.q_values(outputs), actions, targets)
        return ItemLosses(error * error, 2.0 * error.detach().abs() + 1.0, error.detach())


def test_run_block_head_q_values_and_priority_are_the_losses_own():
    """The last layer is one output per action, written as two halves of it."""
    rule, state = rule_and_state(loss=ScalarLoss(mse), optimizer="sgd", normalization="none")
    halves = dataclasses.replace(rule, loss=TwoOutputsPerAction())

    def split(tensors):
        return {
            n: (t / 2).repeat_interleave(2, 0) if n[0] == "4" else t for n, t in tensors.items()
        }

    twice = state._replace(
        parameters=split(state.parameters),
        target_parameters=split(state.target_parameters),
        optimizer=initial_state("sgd", list(split(state.parameters).values())),
    )
    batch = batches().updates()[0]

    expected, error, loss, *_ = update_once(rule, state, batch, HYPER)
    got, priority, other_loss, *_ = update_once(halves, twice, batch, HYPER)

    torch.testing.assert_close(priority, 2.0 * error + 1.0)
    torch.testing.assert_close(other_loss, loss)
    assert got.parameters["4.weight"].shape == (4, 8)
    # Each half has the gradient of the whole, so both together take two of its steps.
    whole = got.parameters["4.weight"].reshape(2, 2, 8).sum(1)
    old = state.parameters["4.weight"]
    torch.testing.assert_close(whole - old, 2.0 * (expected.parameters["4.weight"] - old))


def test_update_once_leaves_every_argument_alone_but_the_batch_norm_buffers():
    rule, state = rule_and_state(polyak=True)
    block = batches().updates()[0]
    before = [copy_tensors(group) for group in state[:4]]
    batch_before = [column.clone() for column in block.tensors()]

    new, *_ = update_once(rule, state, block, HYPER)

    for index in (0, 2, 3):
        torch.testing.assert_close(state[index], before[index], rtol=0, atol=0)
    torch.testing.assert_close(block.tensors(), batch_before, rtol=0, atol=0)
    assert state.optimizer.step.item() == 0
    assert not any(v.any() for v in state.optimizer.first)
    assert new.buffers is state.buffers
    assert state.buffers["1.num_batches_tracked"].item() == 1


def test_update_once_next_observations_never_reach_the_running_statistics():
    statistics = []
    for shift in (0.0, 100.0):
        rule, state = rule_and_state(target_network=False)
        block = batches().updates()[0]
        block = block._replace(next_observations=block.next_observations + shift)
        statistics.append(update_once(rule, state, block, HYPER)[0].buffers)

    torch.testing.assert_close(statistics[0], statistics[1], rtol=0, atol=0)


def test_update_once_reports_mean_q_of_the_taken_actions():
    rule, state = rule_and_state(normalization="none")
    block = batches().updates()[0]
    q = rule.forward(state.parameters, state.buffers, block.observations, False)
    taken = q[torch.arange(8), block.actions]

    _, _, _, q_mean, _ = update_once(rule, state, block, HYPER)

    torch.testing.assert_close(q_mean, taken.mean())


def test_update_once_reported_norm_is_that_before_clipping():
    block = batches().updates()[0]
    norms = []
    for clip in (False, True):
        rule, state = rule_and_state(clip=clip)
        hyper = HYPER._replace(max_grad_norm=torch.tensor(1e-4))
        new, *_, norm = update_once(rule, state, block, hyper)
        norms.append(norm)
        velocity = torch.stack([v.norm() for v in new.optimizer.first]).norm()
        torch.testing.assert_close(
            velocity, torch.tensor(1e-4) if clip else norm, rtol=0.02, atol=0
        )

    torch.testing.assert_close(norms[0], norms[1])


def test_update_once_row_of_weight_zero_has_no_gradient():
    results = []
    for n_step_return in (0.0, 50.0):
        rule, state = rule_and_state(normalization="none")
        block = batches().updates()[0]
        block.is_weights[3] = 0.0
        block.n_step_returns[3] = n_step_return
        results.append(update_once(rule, state, block, HYPER))

    torch.testing.assert_close(results[0][0].parameters, results[1][0].parameters, rtol=0, atol=0)
    assert results[0][1][3] != results[1][1][3]  # the TD error itself is unweighted


def test_update_once_weights_scale_each_rows_share_of_the_gradient():
    rule, state = rule_and_state(normalization="none")
    block = batches().updates()[0]
    gradients = []
    for row in range(8):
        weights = torch.zeros(8)
        weights[row] = block.is_weights[row]
        new, *_ = update_once(rule, state, block._replace(is_weights=weights), HYPER)
        gradients.append(new.optimizer.first)

    together, *_ = update_once(rule, state, block, HYPER)

    for index, velocity in enumerate(together.optimizer.first):
        torch.testing.assert_close(velocity, sum(g[index] for g in gradients), atol=1e-6, rtol=1e-4)


def test_update_once_twice_the_weights_are_twice_the_gradient():
    """Huber clips δ before the weight is applied, so a clipped row counts by its weight as well."""
    gradients = []
    for scale in (1.0, 2.0):
        rule, state = rule_and_state(normalization="none")
        block = batches().updates()[0]
        block = block._replace(
            n_step_returns=10.0 * block.n_step_returns, is_weights=scale * block.is_weights
        )
        new, *_ = update_once(rule, state, block, HYPER)
        gradients.append(new.optimizer.first)

    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(twice, 2.0 * once)


def test_update_once_norm_is_clipped_after_the_weights():
    """What the weights make small enough is not clipped, however large it was without them."""
    block = batches().updates()[0]
    block = block._replace(is_weights=0.01 * block.is_weights)
    velocities = []
    for clip in (False, True):
        rule, state = rule_and_state(normalization="none", clip=clip)
        hyper = HYPER._replace(max_grad_norm=torch.tensor(0.05))
        unweighted = block._replace(is_weights=torch.ones(8))
        assert update_once(rule, state, unweighted, hyper)[-1] > 0.1
        new, *_, norm = update_once(rule, state, block, hyper)
        assert norm < 0.05
        velocities.append(new.optimizer.first)

    torch.testing.assert_close(velocities[0], velocities[1], rtol=0, atol=0)


def test_update_once_without_a_target_network_takes_no_gradient_through_the_target():
    rule, state = rule_and_state(normalization="none", target_network=False, double_q=False)
    block = batches().updates()[0]
    leaves = {name: p.clone().requires_grad_() for name, p in state.parameters.items()}

    def q_values(observations):
        return rule.forward(leaves, state.buffers, observations, False)

    values = q_values(block.next_observations).max(dim=1).values.detach()
    targets = block.n_step_returns + block.bootstrap_discounts * values
    taken = q_values(block.observations)[torch.arange(8), block.actions]
    loss = (block.is_weights * huber(targets - taken, torch.tensor(1.0))).mean()
    expected = torch.autograd.grad(loss, list(leaves.values()))

    new, *_ = update_once(rule, state, block, HYPER)

    torch.testing.assert_close(new.optimizer.first, list(expected))


def test_polyak_table():
    state = LearnerState(
        {"w": torch.tensor([3.0, -1.0])},
        {"mean": torch.tensor([4.0]), "count": torch.tensor(7)},
        {"w": torch.tensor([1.0, -1.0])},
        {"mean": torch.tensor([0.0]), "count": torch.tensor(2)},
        initial_state("sgd", [torch.zeros(2)]),
    )

    mixed = polyak(state, torch.tensor(0.25))

    assert mixed.target_parameters["w"].tolist() == [1.5, -1.0]
    assert mixed.target_buffers["mean"].tolist() == [1.0]
    assert mixed.target_buffers["count"].item() == 7
    assert mixed.target_buffers["count"].dtype == torch.int64
    assert mixed.parameters is state.parameters
    mixed.target_buffers["count"].add_(1)
    assert state.buffers["count"].item() == 7
    assert state.target_parameters["w"].tolist() == [1.0, -1.0]
