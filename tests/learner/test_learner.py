import copy
import itertools
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.errors import CheckpointError, InvariantError, NonFiniteError
from qfleet.common.networks import build_network, load_arrays
from qfleet.common.params import params_sha256
from qfleet.common.reports import BlockStats
from qfleet.common.seeding import seed_int
from qfleet.common.types import EnvironmentSpec, ReplaySample, TargetSyncEvent
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)  # these networks are too small for more

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
BATCH = 16


def configuration(
    *, seed: int = 1, network: dict[str, Any] | None = None, **learner: Any
) -> LearnerPlan:
    config = Config(
        seed=seed,
        network={"hidden_sizes": (16, 8), "normalization": "batch", **(network or {})},
        learner={
            "batch_size": BATCH,
            "updates_per_call": 5,
            "target_update_period_learner_steps": 10,
            "publish_period_learner_steps": 5,
            "learning_rate": 0.01,
            **learner,
        },
        eval={"period_learner_steps": 50},
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


def sample(seed: int, k: int = 5, shape: tuple[int, ...] = (4,)) -> ReplaySample:
    rng = np.random.default_rng(seed)
    columns = {
        "observation": rng.normal(size=(k, BATCH, *shape)).astype(np.float32),
        "action": rng.integers(0, 2, (k, BATCH)).astype(np.int32),
        "n_step_return": rng.normal(size=(k, BATCH)).astype(np.float32) * 2,
        "bootstrap_discount": (rng.random((k, BATCH)) < 0.8).astype(np.float32) * 0.97,
        "next_observation": rng.normal(1.0, 2.0, (k, BATCH, *shape)).astype(np.float32),
    }
    for array in columns.values():
        array.flags.writeable = False  # as they come out of a message
    keys = np.arange(k * BATCH).reshape(k, BATCH)
    weights = rng.uniform(0.2, 1.0, (k, BATCH)).astype(np.float32)
    return ReplaySample(columns, keys, np.zeros((k, BATCH), np.int32), weights)


def trained(plan: LearnerPlan, n_blocks: int, first_seed: int = 0) -> Learner:
    learner = Learner(plan, SPEC)
    for block in range(n_blocks):
        learner.update_block(sample(first_seed + block))
        learner.check_valid()
    return learner


class Oracle:
    """The textbook loop: two modules, torch.optim and torch's losses."""

    def __init__(self, plan: LearnerPlan) -> None:
        self.plan = plan
        seed = seed_int(plan.seed, "learner.network")
        self.online = build_network(plan.network, SPEC, seed)
        self.target = copy.deepcopy(self.online).eval()
        self.optimizer = torch.optim.SGD(
            self.online.parameters(), lr=self.plan.learning_rate, momentum=self.plan.momentum
        )
        self.steps = 0

    def next_values(self, observations: torch.Tensor) -> torch.Tensor:
        self.online.eval()
        with torch.no_grad():
            online = self.online(observations.clone())  # a network may write to its input
            if not self.plan.target_network:
                return online.max(dim=1).values
            target = self.target(observations.clone())
        if not self.plan.double_q:
            return target.max(dim=1).values
        return target[torch.arange(BATCH), online.argmax(dim=1)]

    def update(self, batch: ReplaySample, k: int) -> np.ndarray:
        c = {n: torch.from_numpy(a[k].copy()) for n, a in batch.columns.items()}
        values = self.next_values(c["next_observation"])
        targets = c["n_step_return"] + c["bootstrap_discount"] * values
        self.online.train()
        q = self.online(c["observation"].clone())[torch.arange(BATCH), c["action"].long()]
        kind = functional.mse_loss if self.plan.loss == "mse" else functional.smooth_l1_loss
        elements = kind(q, targets, reduction="none")
        loss = (torch.from_numpy(batch.is_weights[k]) * elements).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.plan.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.online.parameters(), self.plan.max_grad_norm)
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.plan.target_update_period_learner_steps == 0:
            self.target.load_state_dict(self.online.state_dict())
        return (targets - q).detach().abs().numpy()


def assert_equals_module(
    arrays: dict[str, np.ndarray], module: nn.Module, tolerance: float
) -> None:
    state = module.state_dict()
    assert set(arrays) == set(state)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, state[name].numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("normalization", "loss", "double_q", "clip", "target_network"),
    itertools.product(
        ["none", "batch"], ["mse", "huber"], [False, True], [None, 0.5], [False, True]
    ),
)
def test_update_block_equals_the_textbook_loop(normalization, loss, double_q, clip, target_network):
    plan = configuration(
        network={"normalization": normalization},
        loss=loss,
        double_q=double_q,
        max_grad_norm=clip,
        target_network=target_network,
        learning_rate=0.003,
    )
    learner, oracle = Learner(plan, SPEC), Oracle(plan)

    for block in range(4):
        batch = sample(block)
        errors = learner.update_block(batch)
        for k in range(5):
            np.testing.assert_allclose(errors[k], oracle.update(batch, k), rtol=0, atol=1e-5)
        if block == 2:  # five updates after the sync
            expected = oracle.target if target_network else None
            if expected is not None:
                assert_equals_module(learner.target_params(), expected, 1e-6)

    assert (errors.dtype, errors.shape) == (np.float64, (5, BATCH))
    assert_equals_module(learner.params(), oracle.online, 1e-6)
    learner.check_valid()


@pytest.mark.parametrize("change", [{"double_q": False}, {"loss": "mse"}, {"max_grad_norm": 0.01}])
def test_update_block_each_option_changes_the_result(change):
    base, other = trained(configuration(), 4), trained(configuration(**change), 4)

    assert base.params_sha256() != other.params_sha256()


def test_update_block_importance_weights_change_the_result():
    learner, unweighted = Learner(configuration(), SPEC), Learner(configuration(), SPEC)
    batch = sample(0)
    ones = ReplaySample(
        batch.columns, batch.item_keys, batch.shards, np.ones((5, BATCH), np.float32)
    )

    learner.update_block(batch)
    unweighted.update_block(ones)

    assert learner.params_sha256() != unweighted.params_sha256()


@pytest.mark.parametrize("target_network", [True, False])
def test_update_block_batch_norm_counts_exactly_one_batch_per_update(target_network):
    learner = trained(configuration(target_network=target_network), 3)

    params = learner.params()
    counts = [int(a) for n, a in params.items() if n.endswith("num_batches_tracked")]
    assert counts == [15, 15]
    if target_network:
        target = learner.target_params()
        counts = [int(a) for n, a in target.items() if n.endswith("num_batches_tracked")]
        assert counts == [10, 10]


def test_sync_leaves_online_and_target_equal_bit_for_bit_buffers_included():
    plan = configuration()
    learner = trained(plan, 2)
    online, target = build_network(plan.network, SPEC, 0), build_network(plan.network, SPEC, 1)

    load_arrays(online, learner.params())
    load_arrays(target, learner.target_params())

    assert params_sha256(learner.target_params()) == learner.params_sha256()
    assert any(name.endswith("running_var") for name in learner.target_params())
    x = torch.randn(32, 4)
    assert torch.equal(online.eval()(x), target.eval()(x))
    learner.update_block(sample(9))
    assert params_sha256(learner.target_params()) != learner.params_sha256()


def test_syncs_happen_exactly_at_multiples_of_the_period_and_publish_themselves():
    learner = Learner(configuration(), SPEC)
    snapshots = learner.take_snapshots()
    digests = [learner.params_sha256()]

    for block in range(9):
        learner.update_block(sample(block))
        if learner.learner_steps % 10 == 0:
            digests.append(learner.params_sha256())
        snapshots += learner.take_snapshots()

    assert [s.learner_step for s in snapshots] == [0, 10, 20, 30, 40]
    assert [s.version for s in snapshots] == [1, 2, 3, 4, 5]
    assert all(s.is_target_sync for s in snapshots)
    assert [params_sha256(s.arrays) for s in snapshots] == digests
    assert learner.target_syncs == [TargetSyncEvent(10 * i, i + 1) for i in range(5)]
    assert learner.stats().target_syncs == 5
    assert learner.take_snapshots() == []


@pytest.mark.parametrize("options", [{"target_tau": 0.1}, {"target_network": False}])
def test_without_hard_syncs_no_event_is_logged_and_no_snapshot_flagged(options):
    learner = trained(configuration(**options), 4)
    learner.publish()

    assert learner.target_syncs == []
    snapshots = [*learner.take_snapshots(), *learner.current_snapshots()]
    assert [(s.version, s.is_target_sync) for s in snapshots] == [
        (1, False),
        (2, False),
        (2, False),
    ]
    assert learner.stats().target_syncs == 0
    assert bool(learner.target_params()) == ("target_tau" in options)


def test_polyak_target_follows_by_tau_after_every_update():
    learner = Learner(configuration(target_tau=0.25, updates_per_call=1), SPEC)
    expected = learner.target_params()

    for seed in range(6):
        learner.update_block(sample(seed, k=1))
        online = learner.params()
        expected = {
            name: old + np.float32(0.25) * (online[name] - old)
            if old.dtype.kind == "f"
            else online[name]
            for name, old in expected.items()
        }

    for name, array in learner.target_params().items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-7)
    assert int(learner.target_params()["1.num_batches_tracked"]) == 6


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("observation", np.nan),
        ("next_observation", np.nan),
        ("n_step_return", np.inf),
        ("n_step_return", 2e19),  # the TD error is finite, its square is not
    ],
)
def test_update_block_non_finite_raises_and_leaves_the_learner_as_it_was(column, value):
    learner = trained(configuration(loss="mse"), 1)
    before = b"".join(encode_capture(learner.capture()))
    batch = sample(5)
    broken = batch.columns[column].copy()
    broken[4, 7] = value
    broken_batch = ReplaySample(
        {**batch.columns, column: broken}, batch.item_keys, batch.shards, batch.is_weights
    )

    with pytest.raises(NonFiniteError, match=r"updates 6…10.*learner\.learning_rate"):
        learner.update_block(broken_batch)

    assert b"".join(encode_capture(learner.capture())) == before
    learner.check_valid()
    learner.update_block(batch)


def test_stats_of_a_diverged_learner_hold_its_last_blocks_up_to_the_one_that_is_not_finite():
    learner = trained(configuration(loss="mse"), 2)
    loss = learner.stats().loss
    learner.update_block(sample(2))
    third = learner.stats()
    assert third.last_blocks == ()  # nobody asks while all is well
    batch = sample(3)
    columns = {**batch.columns, "n_step_return": np.full_like(batch.columns["n_step_return"], 2e19)}

    with pytest.raises(NonFiniteError, match=r"try learner\.loss huber, a smaller"):
        learner.update_block(ReplaySample(columns, batch.item_keys, batch.shards, batch.is_weights))

    blocks = [BlockStats(int(steps), *means) for steps, *means in learner.stats().last_blocks]
    assert [block.learner_steps for block in blocks] == [5, 10, 15, 20]
    assert (blocks[0].loss + blocks[1].loss) / 2 == pytest.approx(loss)
    assert blocks[2] == pytest.approx((15, *third[3:7]))
    assert not np.isfinite(blocks[3].loss)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adam"},
        {"optimizer": "radam"},
        {"target_tau": 0.05},
        {"target_network": False},
        {"network": {"normalization": "none"}, "max_grad_norm": 1.0},
    ],
)
@pytest.mark.parametrize("n_blocks", [0, 2, 3])
def test_capture_restore_continues_bit_for_bit(options, n_blocks):
    learner = trained(configuration(**options), n_blocks)
    learner.fleet_env_steps = 1_234
    resumed = Learner(configuration(seed=99, **options), SPEC)

    resumed.restore(decode_capture(b"".join(encode_capture(learner.capture()))))

    assert b"".join(encode_capture(resumed.capture())) == b"".join(
        encode_capture(learner.capture())
    )
    for block in range(10, 13):
        np.testing.assert_array_equal(
            resumed.update_block(sample(block)), learner.update_block(sample(block))
        )
        resumed.check_valid()
    assert resumed.params_sha256() == learner.params_sha256()
    assert params_sha256(resumed.target_params()) == params_sha256(learner.target_params())
    assert resumed.stats() == learner.stats()
    assert resumed.target_syncs == learner.target_syncs
    assert resumed.fleet_env_steps == 1_234
    assert b"".join(encode_capture(resumed.capture())) == b"".join(
        encode_capture(learner.capture())
    )


def test_capture_is_a_copy():
    learner = trained(configuration(), 1)
    capture = learner.capture()
    before = b"".join(encode_capture(capture))

    learner.update_block(sample(7))
    learner.stats()

    assert b"".join(encode_capture(capture)) == before


@pytest.mark.parametrize(
    ("options", "named", "unnamed"),
    [
        ({"network": {"hidden_sizes": (16, 9)}}, ["online/3.weight", "target/6.weight"], "/0."),
        (
            {"network": {"normalization": "none"}},
            ["online/0.bias", "online/1.running_mean"],
            "online/0.weight",
        ),
        ({"optimizer": "adam"}, ["second/0.weight"], "online"),
        ({"target_network": False}, ["target/0.weight"], "online"),
    ],
)
def test_restore_into_another_network_names_what_differs_and_changes_nothing(
    options, named, unnamed
):
    capture = trained(configuration(), 1).capture()
    other = Learner(configuration(**options), SPEC)
    before = b"".join(encode_capture(other.capture()))

    with pytest.raises(CheckpointError) as caught:
        other.restore(capture)

    for name in named:
        assert name in str(caught.value)
    assert unnamed not in str(caught.value)
    assert b"".join(encode_capture(other.capture())) == before


def test_restore_arrays_of_another_dtype_are_refused():
    capture = trained(configuration(), 1).capture()
    capture.arrays["online/0.weight"] = capture.arrays["online/0.weight"].astype(np.float64)

    with pytest.raises(CheckpointError, match=r"differs in online/0\.weight$"):
        Learner(configuration(), SPEC).restore(capture)


def test_restore_queues_the_target_and_the_latest_for_receivers():
    learner = trained(configuration(), 2)
    learner.update_block(sample(5))
    learner.publish()
    resumed = Learner(configuration(seed=5), SPEC)

    resumed.restore(learner.capture())

    target, latest = resumed.take_snapshots()
    assert (target.version, target.learner_step, target.is_target_sync) == (2, 10, True)
    assert (latest.version, latest.learner_step, latest.is_target_sync) == (3, 15, False)
    assert params_sha256(target.arrays) == params_sha256(learner.target_params())
    assert params_sha256(latest.arrays) == learner.params_sha256()


def test_current_snapshots_end_with_the_parameters_of_now():
    learner = trained(configuration(), 2)

    assert [(s.version, s.is_target_sync) for s in learner.current_snapshots()] == [(2, True)]
    learner.update_block(sample(5))  # not published yet
    snapshots = learner.current_snapshots()

    assert [(s.learner_step, s.is_target_sync) for s in snapshots] == [(10, True), (15, False)]
    assert params_sha256(snapshots[-1].arrays) == learner.params_sha256()


def test_publish_is_due_once_per_period():
    plan = configuration(publish_period_learner_steps=10, target_update_period_learner_steps=100)
    learner = Learner(plan, SPEC)
    due = []

    for block in range(4):
        learner.update_block(sample(block))
        due.append(learner.publish_due)
        if learner.publish_due:
            snapshot = learner.publish()
            assert params_sha256(snapshot.arrays) == learner.params_sha256()
            assert (learner.is_published, learner.publish_due) == (True, False)

    assert due == [False, True, False, True]
    assert [s.version for s in learner.take_snapshots()] == [1, 2, 3]


def test_snapshot_does_not_change_with_later_updates():
    learner = Learner(configuration(), SPEC)
    (first,) = learner.take_snapshots()
    digest = params_sha256(first.arrays)

    learner.update_block(sample(0))

    assert params_sha256(first.arrays) == digest


def test_snapshot_carries_the_fleets_env_steps():
    learner = Learner(configuration(), SPEC)
    learner.fleet_env_steps = 77

    assert learner.publish().env_steps == 77


def test_stats_are_means_since_the_previous_call():
    learner = Learner(configuration(), SPEC)
    errors = [learner.update_block(sample(seed)) for seed in range(2)]

    first = learner.stats()
    repeated = learner.stats()
    third = learner.update_block(sample(2))

    assert first.learner_steps == 10
    assert first.td_error_abs_mean == pytest.approx(np.mean(errors))
    assert repeated == first
    assert learner.stats().td_error_abs_mean == pytest.approx(third.mean())


def test_equal_seeds_give_equal_bits_and_other_seeds_other_networks():
    one, same, other = (trained(configuration(seed=s), 2) for s in (1, 1, 2))

    assert one.params_sha256() == same.params_sha256()
    assert one.params_sha256() != other.params_sha256()


def test_update_block_image_observations_are_flattened_and_cast():
    spec = EnvironmentSpec("Images-v0", (2, 2), "|u1", 2, None, None)
    flat, images = Learner(configuration(), SPEC), Learner(configuration(), spec)
    batch = sample(0, shape=(2, 2))
    pixels = {
        name: (np.abs(a) * 20).astype(np.uint8) if name.endswith("observation") else a
        for name, a in batch.columns.items()
    }
    floats = {
        name: a.reshape(5, BATCH, 4).astype(np.float32) if name.endswith("observation") else a
        for name, a in pixels.items()
    }

    images.update_block(ReplaySample(pixels, batch.item_keys, batch.shards, batch.is_weights))
    flat.update_block(ReplaySample(floats, batch.item_keys, batch.shards, batch.is_weights))

    assert images.params_sha256() == flat.params_sha256()


class Odd(nn.Module):
    """A frozen layer, a layer that is never used, and an input scaled in place."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(n_inputs, 8).requires_grad_(False)
        self.last = nn.Linear(8, n_actions)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.frozen(x.div_(2.0))))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_update_block_trains_only_what_a_custom_network_uses(monkeypatch, optimizer):
    module = types.ModuleType("learner_networks_under_test")
    module.odd = Odd
    monkeypatch.setitem(sys.modules, "learner_networks_under_test", module)
    plan = configuration(
        network={"factory": "learner_networks_under_test:odd"}, optimizer=optimizer
    )
    learner = Learner(plan, SPEC)
    before = learner.params()

    learner.update_block(sample(0))

    after = learner.params()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"last.weight", "last.bias"}
    load_arrays(build_network(plan.network, SPEC, 0), after)
    if optimizer == "sgd":
        oracle, batch = Oracle(plan), sample(0)
        for k in range(5):
            oracle.update(batch, k)
        np.testing.assert_allclose(
            after["last.weight"], oracle.online.last.weight.detach(), atol=1e-6
        )


def test_check_valid_notices_a_parameter_that_is_not_finite():
    learner = Learner(configuration(), SPEC)
    capture = learner.capture()
    capture.arrays["online/0.weight"][0, 0] = np.nan

    learner.restore(capture)

    with pytest.raises(InvariantError, match="not finite"):
        learner.check_valid()


def test_check_valid_notices_versions_that_do_not_grow():
    learner = trained(configuration(), 4)
    learner.target_syncs.append(TargetSyncEvent(20, 1))

    with pytest.raises(InvariantError, match="do not grow"):
        learner.check_valid()
