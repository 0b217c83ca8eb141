import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qfleet.common.errors import ConfigError, NonFiniteError
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast import notices, package_backend
from qfleet.learner.fast.build_block import prebuild
from qfleet.learner.fast.compiled import CompiledBlock, load_flat_block, trace_block
from qfleet.learner.fast.fast_block import distance_from_eager, random_batches
from qfleet.learner.fast.flat_block import flat_block
from qfleet.learner.fast.initial_network import initial_network
from qfleet.learner.fast.learner_path import BuildProcess
from qfleet.learner.fast.libtorch import libtorch
from qfleet.learner.fast.package_backend import PackageBackend
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.fast.starting_block import load_package
from qfleet.learner.learner import Learner
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.torch_backend import TorchBackend
from qfleet.learner.update import Batches, LearnerState, UpdateRule, copy_tensors, run_block
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)  # these networks are too small for more

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
CPU = torch.device("cpu")
FLOAT64_TOLERANCE = 1e-6
FLOAT32_TOLERANCE = 1e-3
"""Of every parameter's largest magnitude, after 1,000 updates."""

VARIANTS: dict[str, dict[str, Any]] = {
    "batch-double-clip": {},
    "none-mse": {"normalization": "none", "loss": "mse", "max_grad_norm": None},
    "layer-adam": {"normalization": "layer", "optimizer": "adam"},
    "batch-radam-polyak": {"optimizer": "radam", "target_tau": 0.05},
    "batch-no-target": {"target_network": False, "double_q": False},
    "polyak-single": {"target_tau": 0.01, "double_q": False, "loss": "mse"},
}


def small_plan(**changes: Any) -> LearnerPlan:
    """The smallest run that has everything: BatchNorm, double Q, clipping, hard syncs."""
    learner = dict(changes)
    normalization = learner.pop("normalization", "batch")
    config = Config(
        network={"hidden_sizes": (8,), "normalization": normalization},
        learner={
            "device": "cpu",
            "batch_size": 4,
            "updates_per_call": 4,
            "target_update_period_learner_steps": 8,
            "publish_period_learner_steps": 4,
            "learning_rate": 0.01,
            "max_grad_norm": 1.0,
            "compile": "auto",
            **learner,
        },
        eval={"period_learner_steps": 8},
        run={"max_learner_steps": 1_000},
        runtime="local",
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


class Inputs(NamedTuple):
    """What a block needs beside its batches."""

    rule: UpdateRule
    state: LearnerState
    hyper: Hyperparameters


def inputs_of(spec: PackageSpec) -> Inputs:
    return Inputs(*initial_block_inputs(spec.plan, SPEC, CPU, getattr(torch, spec.dtype)))


def described(spec: PackageSpec) -> dict[str, Any]:
    state = inputs_of(spec).state
    return spec.describe(state.parameters, state.buffers)


def learnable_batches(seed: int, spec: PackageSpec, n_updates: int) -> Batches:
    """Targets that a network can learn, so that rounding errors do not grow without bound."""
    rng = np.random.default_rng(seed)
    batch = spec.plan.batch_size
    observations = rng.normal(size=(2, n_updates, batch, 4))
    returns = observations[0].sum(axis=-1) * 0.3

    def tensor(array: Any) -> torch.Tensor:
        return torch.as_tensor(array, dtype=getattr(torch, spec.dtype))

    return Batches(
        tensor(observations[0]),
        torch.as_tensor(rng.integers(0, 2, (n_updates, batch))),
        tensor(returns),
        tensor(np.full((n_updates, batch), 0.5)),
        tensor(observations[1]),
        tensor(rng.uniform(0.5, 1.0, (n_updates, batch))),
    )


def synced(state: LearnerState) -> LearnerState:
    return state._replace(
        target_parameters=copy_tensors(state.parameters),
        target_buffers=copy_tensors(state.buffers),
    )


def distance_after_1000_updates(block: CompiledBlock, spec: PackageSpec, inputs: Inputs) -> float:
    """Largest relative distance of any result of blocks 1…250; hard syncs every second block."""
    rule, eager, hyper = inputs
    eager = eager._replace(buffers=copy_tensors(eager.buffers))
    ours = inputs.state
    worst = 0.0
    for index in range(250):
        batches = learnable_batches(index, spec, 4)
        expected, got = run_block(rule, eager, batches, hyper), block(ours, batches, hyper)
        eager, ours = expected.state, got.state
        if rule.target_network and not rule.polyak and index % 2:
            eager, ours = synced(eager), synced(ours)
        pairs = [*zip(expected[1:], got[1:], strict=True)]
        for group in ("parameters", "buffers", "target_parameters", "target_buffers"):
            a, b = getattr(eager, group), getattr(ours, group)
            assert list(a) == list(b)
            pairs += [(a[name], b[name]) for name in a]
        for slot in ("first", "second"):
            pairs += zip(getattr(eager.optimizer, slot), getattr(ours.optimizer, slot), strict=True)
        pairs.append((eager.optimizer.step, ours.optimizer.step))
        for a, b in pairs:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            scale = max(float(a.abs().max()), 1e-3)
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst


@pytest.fixture(scope="session")
def built_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the package of `small_plan()`, compiled by the process that runs start."""
    root = tmp_path_factory.mktemp("qfleet-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QFLEET_CACHE", str(root))
        build = BuildProcess(small_plan(), SPEC)
        try:
            failure = build.wait()
        finally:
            build.end()
    assert failure is None, failure
    return root


@pytest.fixture
def warm(built_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PackageSpec:
    """A cache of this test's own that holds the session's package."""
    root = tmp_path / "warm"
    shutil.copytree(built_cache, root)
    monkeypatch.setenv("QFLEET_CACHE", str(root))
    monkeypatch.setattr(notices, "_said", set())
    return PackageSpec(small_plan(), SPEC)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def loaded(spec: PackageSpec, inputs: Inputs) -> CompiledBlock:
    block = load_package(spec, *inputs)
    assert block is not None
    return block


@pytest.mark.parametrize("name", VARIANTS)
def test_trace_block_1000_updates_float64_equal_eager(name: str) -> None:
    spec = PackageSpec(small_plan(**VARIANTS[name]), SPEC, "float64")
    inputs = inputs_of(spec)
    graph, _ = trace_block(spec, *inputs)
    block = CompiledBlock(lambda flat: graph(*flat), spec)
    assert distance_after_1000_updates(block, spec, inputs) < FLOAT64_TOLERANCE


def test_compiled_1000_updates_float32_equal_eager(warm: PackageSpec) -> None:
    inputs = inputs_of(warm)
    distance = distance_after_1000_updates(loaded(warm, inputs), warm, inputs)
    assert distance < FLOAT32_TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_1000_updates_float64_equal_eager(name: str) -> None:
    spec = PackageSpec(small_plan(**VARIANTS[name]), SPEC, "float64")
    inputs = inputs_of(spec)
    path = prebuild(spec.plan, SPEC, "float64")
    block = CompiledBlock(load_flat_block(path), spec)
    assert distance_after_1000_updates(block, spec, inputs) < FLOAT64_TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.5},
        {"momentum": 0.0},
        {"max_grad_norm": 1e-3},
        {"huber_delta": 0.01},
    ],
)
def test_compiled_other_hyperparameters_need_no_other_package(
    warm: PackageSpec, change: dict[str, float]
) -> None:
    rule, state, hyper = inputs_of(warm)
    block = loaded(warm, Inputs(rule, state, hyper))
    batches = random_batches(warm.plan, SPEC, warm.n_updates)
    # Momentum shows in the second block only.
    state = block(state, batches, hyper).state
    before = block(state, batches, hyper).state.parameters["0.weight"]
    other = hyper._replace(**{name: torch.tensor(value) for name, value in change.items()})
    after = block(state, batches, other).state.parameters["0.weight"]
    assert not torch.allclose(before, after, rtol=1e-4)
    assert distance_from_eager(block, batches, rule, state, other) < 1e-4


def test_compiled_block_of_two_calls_equals_two_blocks_and_writes_no_input(
    warm: PackageSpec,
) -> None:
    inputs = inputs_of(warm)
    block, (_, state, hyper) = loaded(warm, inputs), inputs
    kept = [tensor.clone() for tensor in [*state.parameters.values(), *state.buffers.values()]]
    batches = learnable_batches(3, warm, 8)
    whole = block(state, batches, hyper)
    first = block(state, Batches(*(column[:4] for column in batches)), hyper)
    second = block(first.state, Batches(*(column[4:] for column in batches)), hyper)
    for name, tensor in second.state.parameters.items():
        assert torch.equal(whole.state.parameters[name], tensor)
    assert torch.equal(whole.td_errors_abs, torch.cat([first.td_errors_abs, second.td_errors_abs]))
    assert whole.losses.shape == whole.q_means.shape == whole.grad_norms.shape == (8,)
    now = [*state.parameters.values(), *state.buffers.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert int(whole.state.buffers["1.num_batches_tracked"]) == 8


def test_compiled_block_of_another_shape_is_refused(warm: PackageSpec) -> None:
    inputs = inputs_of(warm)
    block = loaded(warm, inputs)
    batches = learnable_batches(0, warm, 3)
    assert not block.fits(batches)
    with pytest.raises(ValueError, match=r"4 updates of batch 4 per call, got \[3, 4\]"):
        block(inputs.state, batches, inputs.hyper)


# Which path a learner takes.


def sample(seed: int, k: int = 4, scale: float = 1.0) -> ReplaySample:
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(2, k, 4, 4)).astype(np.float32)
    columns = {
        "observation": observations[0] * np.float32(scale),
        "action": rng.integers(0, 2, (k, 4)).astype(np.int32),
        "n_step_return": observations[0].sum(axis=-1) * np.float32(0.3),
        "bootstrap_discount": np.full((k, 4), 0.5, np.float32),
        "next_observation": observations[1],
    }
    zeros = np.zeros((k, 4), np.int64)
    return ReplaySample(columns, zeros, zeros.astype(np.int32), np.ones((k, 4), np.float32))


def test_learner_with_package_trains_to_the_eager_result(
    warm: PackageSpec, no_compiler: None
) -> None:
    learners = {
        mode: Learner(small_plan(compile=mode), SPEC) for mode in ("off", "auto", "required")
    }
    paths = {mode: learner.path for mode, learner in learners.items()}
    assert paths == {"off": "eager", "auto": "compiled", "required": "compiled"}
    for seed in range(20):
        errors = {mode: learner.update_block(sample(seed)) for mode, learner in learners.items()}
        np.testing.assert_allclose(errors["auto"], errors["off"], rtol=1e-3, atol=1e-5)
    assert learners["auto"].params_sha256() == learners["required"].params_sha256()
    assert learners["auto"].target_syncs == learners["off"].target_syncs
    for name, array in learners["off"].params().items():
        np.testing.assert_allclose(learners["auto"].params()[name], array, rtol=1e-3, atol=1e-5)
    learners["auto"].check_valid()


def test_learner_compiled_block_that_diverges_changes_nothing(warm: PackageSpec) -> None:
    learner = Learner(warm.plan, SPEC)
    before = learner.params_sha256()
    with pytest.raises(NonFiniteError, match="updates 1…4"):
        learner.update_block(sample(1, scale=float("nan")))
    assert learner.params_sha256() == before
    assert learner.learner_steps == 0


def test_learner_empty_cache_is_eager_under_auto_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Learner(small_plan(), SPEC).path == "eager"
    assert capsys.readouterr().err == ""
    assert not cache_directory().exists()


def test_learner_required_without_compiler_names_the_remedy(no_compiler: None) -> None:
    with pytest.raises(
        ConfigError, match=r"no-such-compiler.*install g\+\+.*--learner.compile off"
    ):
        Learner(small_plan(compile="required"), SPEC)


def test_learner_damaged_package_is_removed_and_said_once(
    warm: PackageSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = PackageCache(cache_directory())
    key = package_key(described(warm))
    path = cache.find(key)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert Learner(warm.plan, SPEC).path == "eager"
    assert Learner(warm.plan, SPEC).path == "eager"
    assert capsys.readouterr().err.count("is removed: is damaged") == 1
    assert not path.exists()


def test_load_package_that_is_no_package_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    spec = PackageSpec(small_plan(), SPEC)
    inputs = inputs_of(spec)
    cache = PackageCache(cache_directory())
    cache.get_or_build(described(spec), lambda path: path.write_bytes(b"text") and None)
    assert load_package(spec, *inputs) is None
    assert "cannot load" in capsys.readouterr().err
    assert list(cache.directory.glob("*.pt2")) == []


def test_load_package_with_other_results_is_removed(
    warm: PackageSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, state, hyper = inputs_of(warm)
    other = UpdateRule(**{**vars(rule), "loss": "mse"})
    assert load_package(warm, other, state, hyper) is None
    assert "differs from eager PyTorch" in capsys.readouterr().err
    assert load_package(warm, rule, state, hyper) is None


def test_learner_lockstep_run_that_began_eagerly_goes_on_eagerly(warm: PackageSpec) -> None:
    began = Learner(small_plan(compile="off"), SPEC).capture()
    resumed = Learner(warm.plan, SPEC)
    assert resumed.path == "compiled"
    resumed.restore(began)
    assert resumed.path == "eager"
    required = Learner(small_plan(compile="required"), SPEC)
    required.restore(began)
    assert required.path == "compiled"


def test_describe_changes_with_the_code_and_not_with_values() -> None:
    def key(plan: LearnerPlan, dtype: str = "float32") -> str:
        return package_key(described(PackageSpec(plan, SPEC, dtype)))

    base = key(small_plan())
    rates = {"learning_rate": 0.5, "momentum": 0.1, "huber_delta": 2.0, "max_grad_norm": 7.0}
    assert key(small_plan(**rates)) == base
    assert key(replace(small_plan(), seed=9)) == base
    assert key(small_plan(updates_per_call=8)) != base
    assert key(small_plan(), "float64") != base
    others = [key(small_plan(**variant)) for variant in VARIANTS.values()]
    others += [key(small_plan(batch_size=5)), key(small_plan(num_cpus=2))]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize(
    ("updates_per_call", "unrolled"), [(50, 10), (4, 4), (13, 13), (25, 5), (48, 16), (17, 1)]
)
def test_n_updates_is_the_largest_divisor_that_is_unrolled(
    updates_per_call: int, unrolled: int
) -> None:
    plan = small_plan(updates_per_call=updates_per_call)
    assert PackageSpec(plan, SPEC).n_updates == unrolled


# A package without torch.


def learner_groups(learner: Learner) -> dict[str, np.ndarray]:
    return learner.capture().arrays


def assert_same_bits(a: Learner, b: Learner) -> None:
    ours, others = learner_groups(a), learner_groups(b)
    assert list(ours) == list(others)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (others[name].dtype, others[name].shape)
        assert np.array_equal(array, others[name]), name


class EagerLibrary:
    """What a package's machine code would compute, by the eager form."""

    def __init__(self, spec: PackageSpec) -> None:
        inputs = inputs_of(spec)
        self.block = flat_block(inputs.rule, inputs.state)

    def run(self, inputs: list[Any]) -> list[Any]:
        library = libtorch()
        tensors = [torch.from_numpy(library.array(tensor)) for tensor in inputs]
        library.release(inputs)
        return [library.copy(result.numpy()) for result in self.block(*tensors)]


class Counting:
    """`Libtorch`, and how many references are held."""

    def __init__(self) -> None:
        self.held = 0

    def __getattr__(self, name: str) -> Any:
        change = {"view": 1, "copy": 1, "again": 1, "release": -1}.get(name, 0)

        def call(*arguments: Any) -> Any:
            self.held += change * (len(arguments[0]) if name in ("again", "release") else 1)
            return getattr(libtorch(), name)(*arguments)

        return call


def with_backend(backend: PackageBackend, plan: LearnerPlan) -> Learner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qfleet.learner.learner.starting_backend", lambda *_: backend)
        return Learner(plan, SPEC)


@pytest.mark.parametrize("name", VARIANTS)
def test_package_backend_keeps_the_state_of_every_variant_as_eager_does(name: str) -> None:
    plan = small_plan(**VARIANTS[name], updates_per_call=4)
    spec, arrays = PackageSpec(plan, SPEC), Learner(plan, SPEC).params()
    trained = len(inputs_of(spec).state.parameters)
    parameters = {name: arrays[name] for name in list(arrays)[:trained]}
    buffers = {name: arrays[name] for name in list(arrays)[trained:]}
    backend = PackageBackend(libtorch(), EagerLibrary(spec), spec, parameters, buffers)
    ours, eager = with_backend(backend, plan), Learner(plan, SPEC)
    assert (ours.path, eager.path) == ("compiled", "eager")
    for seed in range(5):
        for learner in (ours, eager):
            learner.update_block(sample(seed))
            learner.check_valid()
        assert_same_bits(ours, eager)
    assert ours.stats() == eager.stats()
    assert ours.target_syncs == eager.target_syncs

    # To and fro between the two, and with the parameters of another run.
    eager.update_block(sample(7))
    ours.restore(eager.capture())
    assert_same_bits(ours, eager)
    other = Learner(replace(plan, seed=9), SPEC).params()
    for learner in (ours, eager):
        learner.init_params(other)
        learner.update_block(sample(8))
    assert_same_bits(ours, eager)


def test_package_backend_releases_every_reference_once() -> None:
    plan = small_plan()
    counting, spec = Counting(), PackageSpec(plan, SPEC)
    parameters, buffers = initial_network(plan.network, SPEC, 1)

    class Library(EagerLibrary):
        """Takes over its inputs, as machine code does, so that they are counted as released."""

        def run(self, inputs: list[Any]) -> list[Any]:
            results = super().run(inputs)
            counting.held += len(results) - len(inputs)
            return results

    backend = PackageBackend(counting, Library(spec), spec, parameters, buffers)
    learner = with_backend(backend, plan)
    learner.update_block(sample(0))
    held = counting.held
    for seed in range(1, 5):
        learner.update_block(sample(seed))
    with pytest.raises(NonFiniteError):
        learner.update_block(sample(1, scale=float("nan")))
    learner.update_block(sample(1))
    learner.restore(learner.capture())
    learner.init_params(learner.params())
    assert counting.held == held
    del learner, backend
    gc.collect()
    assert counting.held == 0


def test_learner_with_package_has_the_bits_of_torchs_own_loader(warm: PackageSpec) -> None:
    ours, torchs = Learner(warm.plan, SPEC), TorchBackend(warm.plan, SPEC, "cpu")
    assert isinstance(ours._backend, PackageBackend)
    assert torchs.path == "compiled"
    other = with_backend(torchs, warm.plan)
    for seed in range(250):
        errors = [learner.update_block(sample(seed)) for learner in (ours, other)]
        assert np.array_equal(*errors)
    assert_same_bits(ours, other)
    assert ours.learner_steps == 1_000
    assert ours.stats() == other.stats()


def test_learner_with_package_runs_longer_blocks_as_several_calls(warm: PackageSpec) -> None:
    whole, halves = Learner(warm.plan, SPEC), Learner(warm.plan, SPEC)
    both = sample(3, k=8)
    errors = whole.update_block(both)

    def part(begin: int) -> ReplaySample:
        rows = slice(begin, begin + 4)
        columns = {name: column[rows] for name, column in both.columns.items()}
        rest = (both.item_keys[rows], both.shards[rows], both.is_weights[rows])
        return ReplaySample(columns, *rest)

    assert np.array_equal(errors, [*halves.update_block(part(0)), *halves.update_block(part(4))])
    assert_same_bits(whole, halves)


def test_learner_with_package_refuses_blocks_of_another_shape(warm: PackageSpec) -> None:
    learner = Learner(warm.plan, SPEC)
    with pytest.raises(ValueError, match=r"4 updates of batch 4 per call, got \[3, 4\]"):
        learner.update_block(sample(1, k=3))


def test_learner_with_package_imports_no_torch(warm: PackageSpec) -> None:
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from qfleet.common.plan_json import plan_from_json\n"
        "from qfleet.learner.plan import LearnerPlan\n"
        "from qfleet.common.types import EnvironmentSpec, ReplaySample\n"
        "from qfleet.learner.learner import Learner\n"
        f"plan = plan_from_json(LearnerPlan, {plan_to_json(warm.plan)!r})\n"
        f"spec = EnvironmentSpec.from_json({SPEC.to_json()!r})\n"
        "learner = Learner(plan, spec)\n"
        "data = np.load(sys.argv[1])\n"
        "columns = {name: data[name] for name in data.files if not name.startswith('_')}\n"
        "sample = ReplaySample(columns, data['_keys'], data['_shards'], data['_weights'])\n"
        "learner.update_block(sample)\n"
        "learner.restore(learner.capture())\n"
        "assert 'torch' not in sys.modules\n"
        "print(learner.path, learner.params_sha256())\n"
    )
    taken = sample(5)
    path = cache_directory().parent / "sample.npz"
    rest = {"_keys": taken.item_keys, "_shards": taken.shards, "_weights": taken.is_weights}
    np.savez(path, **taken.columns, **rest)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", program, str(path)]
    found = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    learner = Learner(warm.plan, SPEC)
    learner.update_block(taken)
    assert found.stdout.split() == ["compiled", learner.params_sha256()]


def test_learner_takes_a_package_that_is_finished_while_it_learns(
    warm: PackageSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warm_root = os.environ["QFLEET_CACHE"]
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "empty"))
    learner = Learner(warm.plan, SPEC)
    learner.update_block(sample(0))
    assert not learner.take_package()
    assert learner.path == "eager"
    monkeypatch.setenv("QFLEET_CACHE", warm_root)
    assert learner.take_package()
    assert learner.path == "compiled"
    eager = Learner(small_plan(compile="off"), SPEC)
    eager.update_block(sample(0))
    for seed in range(1, 4):
        errors = [one.update_block(sample(seed)) for one in (learner, eager)]
        np.testing.assert_allclose(*errors, rtol=1e-4, atol=1e-6)


def rewrite_proof(spec: PackageSpec, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change what the proof says, with a digest that fits."""
    cache, key = PackageCache(cache_directory()), package_key(described(spec))
    path = cache.find(key)
    assert path is not None
    proof, entry_path = path.with_suffix(".proof"), path.with_suffix(".json")
    arrays = {name: array.copy() for name, array in load_file(proof).items()}
    change(arrays)
    save_file(arrays, proof)
    entry = json.loads(entry_path.read_text())
    entry["sha256"][".proof"] = hashlib.sha256(proof.read_bytes()).hexdigest()
    entry_path.write_text(json.dumps(entry))
    assert cache.find(key) == path


def test_learner_package_with_other_results_than_its_proof_is_removed(
    warm: PackageSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_proof(warm, lambda arrays: arrays["result/0000"].__imul__(1.01))
    assert Learner(warm.plan, SPEC).path == "eager"
    assert "is removed: differs from eager PyTorch by 9.9e-03" in capsys.readouterr().err
    assert Learner(warm.plan, SPEC).path == "eager"


def test_learner_package_without_a_fitting_proof_is_left_to_torch(warm: PackageSpec) -> None:
    rewrite_proof(warm, lambda arrays: arrays.__delitem__("result/0000"))
    learner = Learner(warm.plan, SPEC)
    assert isinstance(learner._backend, TorchBackend)
    assert learner.path == "compiled"  # it compares live


def test_learner_where_the_library_cannot_be_used_alone_goes_through_torch_and_says_so(
    warm: PackageSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PackageError("no such library")

    monkeypatch.setattr(package_backend, "libtorch", refuse)
    learner = Learner(warm.plan, SPEC)
    assert isinstance(learner._backend, TorchBackend)
    assert learner.path == "compiled"
    said = "qfleet: the compiled block is called through torch: no such library\n"
    assert capsys.readouterr().err == said
