"""The block over static tensors, on the CPU with an operation trace in the place of a CUDA graph.

A trace has what makes a graph dangerous: the operations of one call are kept, Python is not run
again, and results lie in the same tensors each time. Only `capture_graph` itself needs a GPU.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import ConfigError, NonFiniteError
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.fleets.local_fleet import LocalFleet
from qfleet.learner import torch_backend
from qfleet.learner.backend import FLOAT32_TOLERANCE, LearnerBackend
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast import cuda_graph, notices
from qfleet.learner.fast.backends import starting_backend
from qfleet.learner.fast.cuda_graph import (
    Capture,
    CaptureError,
    Replay,
    StaticBlock,
    StaticFunction,
    capture_graph,
    distance_between,
    graph_backend,
    record_block,
)
from qfleet.learner.fast.flat_block import flat_block, flat_state
from qfleet.learner.learner import Learner
from qfleet.learner.noise import N_FORWARDS, noise_size
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.torch_backend import eager_backend
from qfleet.learner.update import (
    Batches,
    LearnerState,
    UpdateRule,
    copy_tensors,
    eager_block,
    run_block,
)
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)  # these networks are too small for more

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
K, B = 4, 8
N_BLOCKS = 50
"""Of K updates: 200 updates."""
FLOAT64_TOLERANCE = 1e-9
"""The same bits where memory is aligned alike, which matrix products may depend on."""
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

VARIANTS: dict[str, dict[str, Any]] = {
    "course": {"double_q": False, "loss": "mse", "max_grad_norm": None},
    "sgd-batch-double-huber-clip": {},
    "sgd-none": {"normalization": "none"},
    "adam-layer": {"normalization": "layer", "optimizer": "adam"},
    "adam-batch-polyak": {"optimizer": "adam", "target_tau": 0.05},
    "radam-batch-polyak-single": {"optimizer": "radam", "target_tau": 0.05, "double_q": False},
    "no-target": {"target_network": False, "double_q": False},
}
FAMILY: dict[str, dict[str, Any]] = {
    "c51-dueling": {"distribution": "c51", "value_min": -1, "value_max": 1, "dueling": True},
    "qr": {"distribution": "qr"},
    "iqn-noisy": {"distribution": "iqn", "noisy": True},
    "munchausen": {"munchausen": True, "double_q": False},
}


class SyncingNetwork(nn.Module):
    """Looks at a value on the host, which no recording can hold."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_actions)

    def forward(self, observations: Tensor) -> Tensor:
        scale = 0.5 if float(observations.sum()) > 0.0 else 1.0
        return self.linear(observations) * scale


class RandomNetwork(nn.Module):
    """Draws random numbers in training, so that no two calls agree."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_actions)

    def forward(self, observations: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(observations), 0.5, self.training)


def small_plan(**changes: Any) -> LearnerPlan:
    learner = dict(changes)
    network: dict[str, Any] = {"hidden_sizes": (16, 8)}
    network["normalization"] = "batch"
    network |= {key: learner.pop(key) for key in NetworkConfig.model_fields if key in learner}
    if "factory" in network:
        network["factory"] = f"{SyncingNetwork.__module__}:{network['factory']}"
    config = Config(
        network=network,
        learner={
            "batch_size": B,
            "updates_per_call": K,
            "target_update_period_learner_steps": 2 * K,
            "publish_period_learner_steps": K,
            "learning_rate": 0.01,
            "max_grad_norm": 1.0,
            **learner,
        },
        eval={"period_learner_steps": 2 * K},
        run={"max_learner_steps": 1_000},
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


class Inputs(NamedTuple):
    rule: UpdateRule
    state: LearnerState
    hyper: Hyperparameters


def inputs_of(plan: LearnerPlan, dtype: torch.dtype | None = None, device: str = "cpu") -> Inputs:
    return Inputs(*initial_block_inputs(plan, SPEC, device, dtype))


def batches_of(
    seed: int,
    dtype: torch.dtype = torch.float32,
    *,
    prioritized: bool = True,
    device: str = "cpu",
    k: int = K,
) -> Batches:
    """Targets that a network can learn; importance weights of 1 unless prioritized."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(2, k, B, 4))
    weights = rng.uniform(0.3, 1.0, (k, B)) if prioritized else np.ones((k, B))

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    return Batches(
        tensor(observations[0]),
        torch.as_tensor(rng.integers(0, 2, (k, B)), device=device),
        tensor(observations[0].sum(axis=-1) * 0.3),
        tensor(np.where(rng.random((k, B)) < 0.9, 0.5, 0.0)),
        tensor(observations[1]),
        tensor(weights),
    )


def traced(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    """A recording without a GPU."""
    trace = make_fx(lambda *flat: function(flat))(*inputs)
    results = [tensor.clone() for tensor in trace(*inputs)]

    def replay() -> Sequence[Tensor]:
        for result, value in zip(results, trace(*inputs), strict=True):
            result.copy_(value)
        return results

    return replay


def unrecorded(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    return lambda: function(inputs)


def refused(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    """What torch raises from a broken recording: the cause, and on leaving it another error."""
    try:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error")


def stale(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    results = function(inputs)
    return lambda: results


def synced(state: LearnerState) -> LearnerState:
    return state._replace(
        target_parameters=copy_tensors(state.parameters),
        target_buffers=copy_tensors(state.buffers),
    )


def assert_equal(expected: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(expected, got, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(b.cpu(), a.cpu(), rtol=tolerance, atol=tolerance)


def train_beside_eager(
    block: StaticBlock,
    inputs: Inputs,
    batches: Callable[[int], Batches],
    tolerance: float,
) -> None:
    """`N_BLOCKS` blocks of both forms, hard syncs after every second; all results compared."""
    rule, ours, hyper = inputs
    eager = ours._replace(buffers=copy_tensors(ours.buffers))
    for index in range(N_BLOCKS):
        expected = run_block(rule, eager, batches(index), hyper)
        got = block(ours, batches(index), hyper)
        assert_equal(flat_state(expected.state), flat_state(got.state), tolerance)
        assert_equal(expected[1:], got[1:], tolerance)
        eager, ours = expected.state, got.state
        if rule.target_network and not rule.polyak and index % 2:
            eager, ours = synced(eager), synced(ours)
    assert float(ours.optimizer.step) == N_BLOCKS * K


@pytest.mark.parametrize(
    ("capture", "prioritized"),
    [
        pytest.param(unrecorded, False, id="unrecorded-uniform"),
        pytest.param(traced, True, id="traced-prioritized"),
        pytest.param(unrecorded, True, id="unrecorded-prioritized", marks=pytest.mark.slow),
        pytest.param(traced, False, id="traced-uniform", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_static_block_200_updates_float64_equal_eager(
    name: str, capture: Capture, prioritized: bool
) -> None:
    inputs = inputs_of(small_plan(**VARIANTS[name]), torch.float64)
    batches = partial(batches_of, dtype=torch.float64, prioritized=prioritized)
    block = StaticBlock(inputs.rule, inputs.state, batches(999), inputs.hyper, capture)
    train_beside_eager(block, inputs, batches, FLOAT64_TOLERANCE)


def test_static_block_takes_other_hyperparameters_without_another_recording() -> None:
    rule, state, hyper = inputs_of(small_plan())
    block = StaticBlock(rule, state, batches_of(0), hyper, traced)
    other = Hyperparameters(*(torch.tensor(v) for v in (0.1, 0.5, 0.0, 0.01, 0.2)))
    for rates in (hyper, other):
        eager = state._replace(buffers=copy_tensors(state.buffers))
        expected = run_block(rule, eager, batches_of(1), rates)
        got = block(state, batches_of(1), rates)
        assert_equal(flat_state(expected.state), flat_state(got.state), 0.0)


def test_static_block_writes_neither_inputs_nor_earlier_results() -> None:
    rule, state, hyper = inputs_of(small_plan(target_tau=0.1))
    batches = batches_of(1)
    block = StaticBlock(rule, state, batches, hyper, traced)
    kept_inputs = [tensor.clone() for tensor in (*flat_state(state), *batches.tensors(), *hyper)]
    first = block(state, batches, hyper)
    kept_results = [tensor.clone() for tensor in (*flat_state(first.state), *first[1:])]
    second = block(first.state, batches_of(2), hyper)
    assert_equal(kept_inputs, [*flat_state(state), *batches.tensors(), *hyper], 0.0)
    assert_equal(kept_results, [*flat_state(first.state), *first[1:]], 0.0)
    assert not torch.equal(second.td_errors_abs, first.td_errors_abs)
    assert second.td_errors_abs.shape == (K, B)
    assert second.losses.shape == second.q_means.shape == second.grad_norms.shape == (K,)


def test_static_block_hands_a_constant_target_through() -> None:
    rule, state, hyper = inputs_of(small_plan())
    result = StaticBlock(rule, state, batches_of(0), hyper, traced)(state, batches_of(1), hyper)
    assert result.state.target_parameters is state.target_parameters
    assert result.state.target_buffers is state.target_buffers


@pytest.mark.parametrize(
    "other",
    [
        batches_of(0, k=3),
        batches_of(0)._replace(is_weights=torch.ones(K, 1)),  # a copy would broadcast it
        batches_of(0)._replace(observations=torch.ones(K, B, 4, dtype=torch.int16)),
        batches_of(0)._replace(observations=batches_of(0).observations.reshape(K, B, 2, 2)),
    ],
    ids=["updates", "weights", "dtype", "shape"],
)
def test_static_block_computes_batches_of_another_layout_eagerly(other: Batches) -> None:
    rule, state, hyper = inputs_of(small_plan())
    block = StaticBlock(rule, state, batches_of(0), hyper, stale)
    expected = eager_block(rule)(state, other, hyper)
    assert_equal(flat_state(expected.state), flat_state(block(state, other, hyper).state), 0.0)


# No operation of the block may wait for the GPU or bring a value from the host.


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.off_device: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, results))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "meta" for leaf in leaves):
            self.off_device.add(str(func))
        return results


def operations(plan: LearnerPlan) -> _Operations:
    """Of one block whose tensors are on a device without values, so that none can be read."""
    rule, state, hyper = inputs_of(plan)
    batches, size = batches_of(0), noise_size(plan, SPEC)
    if size:
        batches = batches._replace(noise=torch.zeros(K, N_FORWARDS, size))
    flat = [t.to("meta") for t in (*flat_state(state), *batches.tensors(), *hyper)]
    with _Operations() as found:
        flat_block(rule, state)(*flat)
    return found


@pytest.mark.parametrize("name", [*VARIANTS, *FAMILY])
def test_block_reads_no_value_and_leaves_the_device_never(name: str) -> None:
    found = operations(small_plan(**{**VARIANTS, **FAMILY}[name]))
    assert found.off_device == set()
    assert "aten._local_scalar_dense.default" not in found.names
    assert sum("_foreach_norm" in one for one in found.names) == K


def test_operations_notice_a_network_that_reads_a_value() -> None:
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        operations(small_plan(factory="SyncingNetwork"))


def test_gradients_lie_as_their_parameters_do() -> None:
    """Otherwise every optimizer operation is one launch per parameter instead of one for all."""
    rule, state, _ = inputs_of(small_plan())
    leaves = {name: p.requires_grad_() for name, p in state.parameters.items()}
    q = rule.forward(leaves, state.buffers, batches_of(0).observations[0], True)
    gradients = torch.autograd.grad(q.sum(), list(leaves.values()))
    assert [g.stride() for g in gradients] == [p.stride() for p in leaves.values()]


# The proof before use, and what a run does when it fails.


def recorded(plan: LearnerPlan, capture: Capture) -> StaticBlock:
    rule, state, hyper = inputs_of(plan)
    return record_block(rule, state, batches_of(0), hyper, capture)


def test_record_block_network_without_two_equal_calls_may_differ_as_much() -> None:
    plan = small_plan(factory="RandomNetwork")
    rule, state, hyper = inputs_of(plan)
    block = StaticBlock(rule, state, batches_of(0), hyper, traced)
    results = [form(state, batches_of(1), hyper) for form in (eager_block(rule), block)]
    assert distance_between(*results) > FLOAT32_TOLERANCE
    assert isinstance(recorded(plan, traced), StaticBlock)


@pytest.mark.parametrize(
    ("capture", "cause"),
    [
        (refused, r"^RuntimeError: CUDA error: operation not permitted when stream is capturing$"),
        (stale, r"^its replay differs from eager PyTorch by "),
    ],
)
def test_record_block_failure_names_the_first_cause(capture: Capture, cause: str) -> None:
    with pytest.raises(CaptureError, match=cause):
        recorded(small_plan(), capture)


def test_record_block_error_whose_context_is_hidden_is_named_itself() -> None:
    def hidden(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
        try:
            raise KeyError("inner")
        except KeyError:
            raise RuntimeError("outer") from None

    with pytest.raises(CaptureError, match=r"^RuntimeError: outer$"):
        recorded(small_plan(), hidden)


def test_record_block_network_that_reads_a_value_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"trying to get value out of a tracing tensor"):
        recorded(small_plan(factory="SyncingNetwork"), traced)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Capture], None]:
    """Take this machine's CPU for the GPU, with another recording; nothing has been said yet."""
    monkeypatch.setattr(notices, "_said", set())

    def record_with(capture: Capture) -> None:
        def graph(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> LearnerBackend:
            assert device == "cuda"
            return graph_backend(plan, spec, "cpu", capture)

        monkeypatch.setattr(cuda_graph, "graph_backend", graph)
        monkeypatch.setattr(
            torch_backend, "eager_backend", lambda plan, spec, _: eager_backend(plan, spec, "cpu")
        )

    return record_with


def test_starting_backend_on_a_gpu_is_the_graph_unless_off(
    gpu: Callable[[Capture], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu(traced)
    paths = {
        mode: starting_backend(small_plan(compile=mode), SPEC, "cuda").path
        for mode in ("auto", "required", "off")
    }
    assert paths == {"auto": "cuda graph", "required": "cuda graph", "off": "eager"}
    assert capsys.readouterr().err == ""


def test_starting_backend_failed_capture_is_said_once_under_auto(
    gpu: Callable[[Capture], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu(refused)
    for _ in range(2):
        assert starting_backend(small_plan(), SPEC, "cuda").path == "eager"
    assert capsys.readouterr().err == (
        "qfleet: the learner stays eager PyTorch: no CUDA graph: RuntimeError: CUDA error: "
        "operation not permitted when stream is capturing\n"
    )


def test_starting_backend_failed_capture_under_required_names_the_remedy(
    gpu: Callable[[Capture], None],
) -> None:
    gpu(refused)
    with pytest.raises(
        ConfigError, match=r"required: .*recorded as a CUDA graph: .*--learner.compile auto or off"
    ):
        starting_backend(small_plan(compile="required"), SPEC, "cuda")


def test_capture_graph_of_tensors_on_the_cpu_is_refused_and_changes_nothing(
    gpu: Callable[[Capture], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu(capture_graph)
    assert starting_backend(small_plan(), SPEC, "cuda").path == "eager"
    assert "the learner stays eager PyTorch: no CUDA graph: " in capsys.readouterr().err


# A learner that runs on static tensors.


@pytest.fixture
def graph_learner(gpu: Callable[[Capture], None]) -> Callable[[LearnerPlan], Learner]:
    """A learner on the CPU that starts as one on a GPU does."""
    gpu(traced)
    return lambda plan: Learner(plan, SPEC, "cuda")


def sample(seed: int, k: int = K, scale: float = 1.0) -> ReplaySample:
    batches = batches_of(seed, k=k)
    columns = {
        "observation": batches.observations.numpy() * np.float32(scale),
        "action": batches.actions.numpy().astype(np.int32),
        "n_step_return": batches.n_step_returns.numpy(),
        "bootstrap_discount": batches.bootstrap_discounts.numpy(),
        "next_observation": batches.next_observations.numpy(),
    }
    keys = np.zeros((k, B), np.int64)
    return ReplaySample(columns, keys, keys.astype(np.int32), batches.is_weights.numpy())


@pytest.mark.parametrize("name", ["sgd-batch-double-huber-clip", "adam-batch-polyak"])
def test_learner_on_the_graph_trains_to_the_eager_bits(
    name: str, graph_learner: Callable[[LearnerPlan], Learner]
) -> None:
    eager = Learner(small_plan(compile="off", **VARIANTS[name]), SPEC)
    graph = graph_learner(small_plan(**VARIANTS[name]))
    assert (eager.path, graph.path) == ("eager", "cuda graph")
    for seed in range(N_BLOCKS):
        errors = [one.update_block(sample(seed)) for one in (eager, graph)]
        np.testing.assert_array_equal(*errors)
        assert eager.stats() == graph.stats()
    assert graph.learner_steps == N_BLOCKS * K
    assert graph.params_sha256() == eager.params_sha256()
    assert graph.target_syncs == eager.target_syncs
    for name, array in eager.target_params().items():
        np.testing.assert_array_equal(graph.target_params()[name], array)
    graph.check_valid()


def test_learner_on_the_graph_refuses_a_diverged_block_and_goes_on(
    graph_learner: Callable[[LearnerPlan], Learner],
) -> None:
    graph, eager = graph_learner(small_plan()), Learner(small_plan(compile="off"), SPEC)
    graph.update_block(sample(0))
    before = graph.params_sha256()
    with pytest.raises(NonFiniteError, match=r"updates 5…8"):
        graph.update_block(sample(1, scale=float("nan")))
    assert (graph.learner_steps, graph.params_sha256()) == (K, before)
    graph.update_block(sample(2))
    for seed in (0, 2):
        eager.update_block(sample(seed))
    assert graph.params_sha256() == eager.params_sha256()


def test_learner_block_that_the_graph_does_not_fit_is_eager(
    graph_learner: Callable[[LearnerPlan], Learner],
) -> None:
    graph, eager = graph_learner(small_plan()), Learner(small_plan(compile="off"), SPEC)
    for one in (graph, eager):
        one.update_block(sample(1, k=3))
        one.update_block(sample(2))
    assert graph.params_sha256() == eager.params_sha256()


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_local_run_on_the_graph_leaves_the_eager_bits(
    sampling: str, gpu: Callable[[Capture], None]
) -> None:
    """Actors, replay with its priorities, importance weights and the learner: 200 updates."""

    def played(path: str) -> tuple[str, str]:
        settings = {
            "runtime": "local",
            "replay.sampling": sampling,
            "replay.min_size_to_sample": 40,
            "actors.count": 2,
            "actors.envs_per_actor": 2,
            "network.hidden_sizes": [16],
            "network.normalization": "batch",
            "learner.batch_size": B,
            "learner.compile": "off" if path == "eager" else "required",
            "learner.publish_period_learner_steps": 10,
            "learner.target_update_period_learner_steps": 20,
            "eval.period_learner_steps": 100,
        }
        config = resolve_config(load_config("cartpole", [], settings), None, cpus=2, gpus=0)
        fleet = LocalFleet(run_plans(config), SPEC, run_id="r1", incarnation=0, device="cuda")
        for _ in range(10):
            fleet.act(40)
            fleet.learn(2)
            fleet.publish()
        found = fleet.report().learner_path, fleet.fingerprint()
        assert fleet.report().learner.learner_steps == 200
        fleet.close()
        return found

    gpu(traced)
    eager = played("eager")
    assert eager[0] == "eager"
    assert played("cuda graph") == ("cuda graph", eager[1])


# On a GPU: the recording itself.


@needs_gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_capture_graph_200_updates_equal_eager(name: str) -> None:
    inputs = inputs_of(small_plan(**VARIANTS[name]), torch.float64, "cuda")
    batches = partial(batches_of, dtype=torch.float64, device="cuda")
    block = StaticBlock(inputs.rule, inputs.state, batches(999), inputs.hyper, capture_graph)
    train_beside_eager(block, inputs, batches, tolerance=1e-6)


@needs_gpu
@pytest.mark.parametrize("name", [*VARIANTS, *FAMILY])
def test_learner_on_a_gpu_uses_the_graph_also_from_another_thread(name: str) -> None:
    changes = {**VARIANTS, **FAMILY}[name]
    eager = Learner(small_plan(compile="off", **changes), SPEC, "cuda")
    graph = Learner(small_plan(compile="required", **changes), SPEC, "cuda")
    assert (eager.path, graph.path) == ("eager", "cuda graph")

    def train() -> None:
        for seed in range(N_BLOCKS):
            graph.update_block(sample(seed))

    thread = threading.Thread(target=train)
    thread.start()
    for seed in range(N_BLOCKS):
        eager.update_block(sample(seed))
    thread.join()
    assert graph.learner_steps == N_BLOCKS * K
    for key, array in eager.params().items():
        np.testing.assert_allclose(graph.params()[key], array, rtol=1e-3, atol=1e-4)


@needs_gpu
def test_capture_graph_that_fails_leaves_stream_and_eager_path_as_they_were(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    stream = torch.cuda.current_stream()
    learner = Learner(small_plan(factory="SyncingNetwork"), SPEC, "cuda")
    assert torch.cuda.current_stream() == stream
    assert learner.path == "eager"
    assert "stays eager PyTorch: no CUDA graph: " in capsys.readouterr().err
    learner.update_block(sample(0))
    learner.check_valid()
