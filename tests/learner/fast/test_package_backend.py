"""A learner on a package's machine code keeps the state that the eager form would."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.common.errors import NonFiniteError
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.learner.backend import N_MEASURED
from qfleet.learner.block_inputs import first_arrays, initial_block_inputs
from qfleet.learner.fast.flat_block import StateTaker, flat_block, flat_state
from qfleet.learner.fast.libtorch import libtorch
from qfleet.learner.fast.package_backend import PackageBackend
from qfleet.learner.fast.package_cache import PackageCache, cache_directory
from qfleet.learner.fast.package_spec import PackageSpec
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.torch_backend import TorchBackend
from qfleet.learner.update import Batches, BlockResult, LearnerState

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
TABLES = EnvironmentSpec("tables", (3, 4), "|u1", 2, None, None)
Plans = Callable[..., LearnerPlan]
Samples = Callable[..., ReplaySample]


def assert_same_bits(a: Learner, b: Learner) -> None:
    ours, others = a.capture().arrays, b.capture().arrays
    assert list(ours) == list(others)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (others[name].dtype, others[name].shape)
        assert np.array_equal(array, others[name]), name


class EagerLibrary:
    """What a package's machine code would compute, by the eager form."""

    def __init__(self, spec: PackageSpec) -> None:
        rule, state, _ = initial_block_inputs(spec.plan, spec.environment, "cpu")
        self.block = flat_block(rule, state)

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


def with_backend(backend: Any, spec: PackageSpec) -> Learner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qfleet.learner.learner.starting_backend", lambda *_: backend)
        return Learner(spec.plan, spec.environment)


def learners(spec: PackageSpec) -> tuple[Learner, Learner]:
    """One on a package without machine code, and an eager one."""
    arrays = first_arrays(spec.plan, spec.environment)
    backend = PackageBackend(libtorch(), EagerLibrary(spec), spec, *arrays)
    return with_backend(backend, spec), Learner(spec.plan, spec.environment)


def test_package_backend_keeps_the_state_of_every_variant_as_eager_does(
    variant: dict[str, Any], plan_of: Plans, sample: Samples
) -> None:
    spec = PackageSpec(plan_of(**variant), SPEC)
    ours, eager = learners(spec)
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
    other = Learner(replace(spec.plan, seed=9), SPEC).params()
    for learner in (ours, eager):
        learner.init_params(other)
        learner.update_block(sample(8))
    assert_same_bits(ours, eager)


def test_package_backend_trains_each_member_as_eager_does(
    member: dict[str, Any], plan_of: Plans, sample: Samples
) -> None:
    """Noise included, which both draw from the same generator; also after a restore."""
    ours, eager = learners(PackageSpec(plan_of(**member), SPEC))
    for seed in range(2):
        for learner in (ours, eager):
            learner.update_block(sample(seed))
        assert_same_bits(ours, eager)
    _, again = learners(PackageSpec(plan_of(**member), SPEC))
    again.restore(eager.capture())
    for learner in (ours, again):
        learner.update_block(sample(7))
    assert_same_bits(ours, again)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learner_of_a_schedule_steps_as_far_as_it_says_on_either_backend(
    schedule: str, plan_of: Plans, sample: Samples
) -> None:
    """From 0.01 to 0 over 12 updates in blocks of 4; a gradient of the same batch each time."""
    plan = plan_of(
        learning_rate_schedule=schedule,
        learning_rate_end_learner_steps=12,
        momentum=0.0,
        target_update_period_learner_steps=400,
        normalization="none",
    )
    constant = plan_of(momentum=0.0, target_update_period_learner_steps=400, normalization="none")
    rates = {"linear": [0.01, 0.02 / 3, 0.01 / 3, 0.0], "cosine": [0.01, 0.0075, 0.0025, 0.0]}
    for scheduled in learners(PackageSpec(plan, SPEC)):
        for seed, rate in enumerate(rates[schedule]):
            expected = Learner(replace(constant, learning_rate=max(rate, 1e-30)), SPEC)
            expected.restore(scheduled.capture())
            for learner in (scheduled, expected):
                learner.update_block(sample(seed))
            for name, array in scheduled.params().items():
                np.testing.assert_allclose(
                    array, expected.params()[name], rtol=1e-5, atol=1e-7, err_msg=name
                )


def test_package_backend_takes_observations_as_they_are_stored(
    plan_of: Plans, sample: Samples
) -> None:
    ours, eager = learners(PackageSpec(plan_of(learning_rate=1e-6), TABLES))
    for seed in range(3):
        for learner in (ours, eager):
            learner.update_block(sample(seed, spec=TABLES))
    assert_same_bits(ours, eager)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, r"4 updates of batch 4 per call, got \[3, 4\]"),
        ({"spec": TABLES}, r"takes observations float32\[4\], got uint8\[3, 4\]"),
        (
            {"spec": replace(SPEC, observation_dtype="<f8")},
            r"takes observations float32\[4\], got float64\[4\]",
        ),
    ],
    ids=["updates", "shape", "dtype"],
)
def test_package_backend_refuses_batches_that_the_machine_code_would_misread(
    changes: dict[str, Any], message: str, plan_of: Plans, sample: Samples
) -> None:
    ours, _ = learners(PackageSpec(plan_of(), SPEC))
    with pytest.raises(ValueError, match=message):
        ours.update_block(sample(1, **changes))


def test_package_backend_releases_every_reference_once(plan_of: Plans, sample: Samples) -> None:
    counting, spec = Counting(), PackageSpec(plan_of(), SPEC)

    class Library(EagerLibrary):
        """Takes over its inputs, as machine code does, so that they are counted as released."""

        def run(self, inputs: list[Any]) -> list[Any]:
            results = super().run(inputs)
            counting.held += len(results) - len(inputs)
            return results

    backend = PackageBackend(counting, Library(spec), spec, *first_arrays(spec.plan, SPEC))
    learner = with_backend(backend, spec)
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


# With machine code.


def test_learner_with_package_1000_updates_equal_eager(warm: PackageSpec, sample: Samples) -> None:
    ours, eager = Learner(warm.plan, SPEC), Learner(replace(warm.plan, compile="off"), SPEC)
    assert (ours.path, eager.path) == ("compiled", "eager")
    for seed in range(250):
        errors = [learner.update_block(sample(seed)) for learner in (ours, eager)]
        np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-4)
    others = eager.capture().arrays
    for name, array in ours.capture().arrays.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-3, atol=1e-4)
    assert ours.learner_steps == 1_000
    assert ours.target_syncs == eager.target_syncs
    ours.check_valid()


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.5}, {"momentum": 0.0}, {"max_grad_norm": 1e-3}, {"huber_delta": 0.01}],
)
def test_learner_with_package_other_hyperparameters_need_no_other_package(
    warm: PackageSpec, change: dict[str, float], sample: Samples
) -> None:
    plans = (warm.plan, replace(warm.plan, **change), replace(warm.plan, compile="off", **change))
    ours = [Learner(plan, SPEC) for plan in plans]
    assert [learner.path for learner in ours] == ["compiled", "compiled", "eager"]
    for learner in ours:  # momentum shows in the second block only
        learner.update_block(sample(1))
        learner.update_block(sample(2))
    before, after, eager = (learner.params()["0.weight"] for learner in ours)
    assert not np.allclose(before, after, rtol=1e-4)
    np.testing.assert_allclose(after, eager, rtol=1e-4, atol=1e-5)


def test_learner_with_package_that_diverges_changes_nothing(
    warm: PackageSpec, sample: Samples
) -> None:
    learner = Learner(warm.plan, SPEC)
    before = learner.params_sha256()
    with pytest.raises(NonFiniteError, match="updates 1…4"):
        learner.update_block(sample(1, scale=float("nan")))
    assert learner.params_sha256() == before
    assert learner.learner_steps == 0


def test_learner_with_package_has_the_bits_of_torchs_own_loader(
    warm: PackageSpec, sample: Samples
) -> None:
    cache = PackageCache(cache_directory())
    [key] = [path.stem for path in cache.directory.glob("*.pt2")]
    loader = torch._C._aoti.AOTIModelPackageLoader(str(cache.find(key)), "model", True, 1, -1)
    _, first_state, hyper = initial_block_inputs(warm.plan, SPEC, "cpu")

    def block(state: LearnerState, batches: Batches, hyper: Any) -> BlockResult:
        results = loader.run([*flat_state(state), *batches.tensors(), *hyper])
        new = StateTaker(results).state(state, target=False)
        return BlockResult(new, *results[-N_MEASURED:])

    ours = Learner(warm.plan, SPEC)
    assert isinstance(ours._backend, PackageBackend)
    torchs = with_backend(TorchBackend(block, "compiled", first_state, hyper), warm)
    for seed in range(250):
        errors = [learner.update_block(sample(seed)) for learner in (ours, torchs)]
        assert np.array_equal(*errors)
    assert_same_bits(ours, torchs)
    assert ours.stats() == torchs.stats()


def test_learner_with_package_runs_longer_blocks_as_several_calls(
    warm: PackageSpec, sample: Samples
) -> None:
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


def test_learner_with_package_imports_no_torch(warm: PackageSpec, sample: Samples) -> None:
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from qfleet.common.plan_json import plan_from_json\n"
        "from qfleet.common.types import EnvironmentSpec, ReplaySample\n"
        "from qfleet.learner.learner import Learner\n"
        "from qfleet.learner.plan import LearnerPlan\n"
        f"plan = plan_from_json(LearnerPlan, {plan_to_json(warm.plan)!r})\n"
        f"spec = EnvironmentSpec.from_json({SPEC.to_json()!r})\n"
        "learner = Learner(plan, spec)\n"
        "data = np.load(sys.argv[1])\n"
        "columns = {name: data[name] for name in data.files if not name.startswith('_')}\n"
        "sample = ReplaySample(columns, data['_keys'], data['_shards'], data['_weights'])\n"
        "learner.update_block(sample)\n"
        "learner.restore(learner.capture())\n"
        "assert not {'torch', 'asyncio'} & set(sys.modules)\n"
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
