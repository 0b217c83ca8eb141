import pytest
import torch

from qfleet.common.networks import Mlp, forward_function
from qfleet.learner.optimizers import Hyperparameters, initial_state
from qfleet.learner.update import (
    Batches,
    LearnerState,
    UpdateRule,
    copy_tensors,
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
    network, target = Mlp(4, 2, (16, 8), normalization), Mlp(4, 2, (16, 8), normalization)
    fields = {
        "loss": "huber",
        "optimizer": "sgd",
        "double_q": True,
        "target_network": True,
        "polyak": False,
        "clip": False,
        **changes,
    }
    rule = UpdateRule(forward=forward_function(network), **fields)
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


def one(block: Batches, k: int) -> Batches:
    return Batches(*(column[k] for column in block))


@pytest.mark.parametrize("is_polyak", [False, True])
@pytest.mark.parametrize("target_network", [False, True])
def test_run_block_equals_its_updates_one_by_one(is_polyak, target_network):
    rule, state = rule_and_state(polyak=is_polyak and target_network, target_network=target_network)
    block = batches()

    result = run_block(rule, state._replace(buffers=copy_tensors(state.buffers)), block, HYPER)

    for k in range(3):
        state, errors, loss, q_mean, norm = update_once(rule, state, one(block, k), HYPER)
        torch.testing.assert_close(result.td_errors_abs[k], errors)
        torch.testing.assert_close(result.losses[k], loss)
        torch.testing.assert_close(result.q_means[k], q_mean)
        torch.testing.assert_close(result.grad_norms[k], norm)
    assert result.td_errors_abs.shape == (3, 8)
    for mine, other in zip(result.state[:4], state[:4], strict=True):
        torch.testing.assert_close(mine, other)


def test_update_once_leaves_every_argument_alone_but_the_batch_norm_buffers():
    rule, state = rule_and_state(polyak=True)
    block = one(batches(), 0)
    before = [copy_tensors(group) for group in state[:4]]
    batch_before = [column.clone() for column in block]

    new, *_ = update_once(rule, state, block, HYPER)

    for index in (0, 2, 3):
        torch.testing.assert_close(state[index], before[index], rtol=0, atol=0)
    torch.testing.assert_close(list(block), batch_before, rtol=0, atol=0)
    assert state.optimizer.step.item() == 0
    assert not any(v.any() for v in state.optimizer.first)
    assert new.buffers is state.buffers
    assert state.buffers["1.num_batches_tracked"].item() == 1


def test_update_once_next_observations_never_reach_the_running_statistics():
    statistics = []
    for shift in (0.0, 100.0):
        rule, state = rule_and_state(target_network=False)
        block = one(batches(), 0)
        block = block._replace(next_observations=block.next_observations + shift)
        statistics.append(update_once(rule, state, block, HYPER)[0].buffers)

    torch.testing.assert_close(statistics[0], statistics[1], rtol=0, atol=0)


def test_update_once_reports_mean_q_of_the_taken_actions():
    rule, state = rule_and_state(normalization="none")
    block = one(batches(), 0)
    q = rule.forward(state.parameters, state.buffers, block.observations, False)
    taken = q[torch.arange(8), block.actions]

    _, _, _, q_mean, _ = update_once(rule, state, block, HYPER)

    torch.testing.assert_close(q_mean, taken.mean())


def test_update_once_reported_norm_is_that_before_clipping():
    block = one(batches(), 0)
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
        block = one(batches(), 0)
        block.is_weights[3] = 0.0
        block.n_step_returns[3] = n_step_return
        results.append(update_once(rule, state, block, HYPER))

    torch.testing.assert_close(results[0][0].parameters, results[1][0].parameters, rtol=0, atol=0)
    assert results[0][1][3] != results[1][1][3]  # the TD error itself is unweighted


def test_update_once_weights_scale_each_rows_share_of_the_gradient():
    rule, state = rule_and_state(normalization="none")
    block = one(batches(), 0)
    gradients = []
    for row in range(8):
        weights = torch.zeros(8)
        weights[row] = block.is_weights[row]
        new, *_ = update_once(rule, state, block._replace(is_weights=weights), HYPER)
        gradients.append(new.optimizer.first)

    together, *_ = update_once(rule, state, block, HYPER)

    for index, velocity in enumerate(together.optimizer.first):
        torch.testing.assert_close(velocity, sum(g[index] for g in gradients), atol=1e-6, rtol=1e-4)


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
