"""Which form of the block a run begins with on a CPU, goes on with, and why not another."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import ConfigError
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.learner.block_inputs import first_arrays
from qfleet.learner.fast import backends, notices
from qfleet.learner.fast.build_block import prebuild
from qfleet.learner.fast.package_backend import PackageBackend
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
TABLES = EnvironmentSpec("tables", (3, 4), "|u1", 2, None, None)
Plans = Callable[..., LearnerPlan]
Samples = Callable[..., ReplaySample]


def key_of(spec: PackageSpec) -> str:
    return package_key(spec.describe(*first_arrays(spec.plan, SPEC)))


def test_learner_with_package_uses_it_unless_off(
    warm: PackageSpec, no_compiler: None, plan_of: Plans
) -> None:
    paths = {m: Learner(plan_of(compile=m), SPEC).path for m in ("off", "auto", "required")}
    assert paths == {"off": "eager", "auto": "compiled", "required": "compiled"}


def test_learner_empty_cache_is_eager_under_auto_and_says_nothing(
    plan_of: Plans, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Learner(plan_of(), SPEC).path == "eager"
    assert capsys.readouterr().err == ""
    assert not cache_directory().exists()


def test_learner_required_without_compiler_names_the_remedy(
    no_compiler: None, plan_of: Plans
) -> None:
    with pytest.raises(
        ConfigError, match=r"no-such-compiler.*install g\+\+.*--learner.compile off"
    ):
        Learner(plan_of(compile="required"), SPEC)


def test_learner_damaged_package_is_removed_and_said_once(
    warm: PackageSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PackageCache(cache_directory()).find(key_of(warm))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert Learner(warm.plan, SPEC).path == "eager"
    assert Learner(warm.plan, SPEC).path == "eager"
    assert capsys.readouterr().err.count("is removed: is damaged") == 1
    assert not path.exists()


def test_learner_file_that_is_no_package_is_removed(
    plan_of: Plans, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    spec, cache = PackageSpec(plan_of(), SPEC), PackageCache(cache_directory())

    def write(path: Path) -> None:
        path.write_bytes(b"text")
        save_file({"input/0000": np.zeros(1)}, path.with_suffix(".proof"))

    cache.get_or_build(spec.describe(*first_arrays(spec.plan, SPEC)), write)
    assert Learner(spec.plan, SPEC).path == "eager"
    assert "is removed: cannot load" in capsys.readouterr().err
    assert list(cache.directory.glob("*.pt2")) == []


def rewrite_proof(spec: PackageSpec, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change what the proof says, with a digest that fits."""
    cache, key = PackageCache(cache_directory()), key_of(spec)
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda arrays: arrays["result/0000"].__imul__(1.01),
            "differs from eager PyTorch by 9.9e-03",
        ),
        (
            lambda arrays: arrays["result/0000"].fill(np.nan),
            "differs from eager PyTorch by inf",
        ),
        (lambda arrays: arrays.pop("result/0000"), "its proof has 33 inputs and 17 results"),
    ],
    ids=["other", "nan", "missing"],
)
def test_learner_package_that_its_proof_does_not_bear_out_is_removed(
    warm: PackageSpec,
    change: Callable[[dict[str, np.ndarray]], object],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewrite_proof(warm, change)
    assert Learner(warm.plan, SPEC).path == "eager"
    assert f"is removed: {reason}" in capsys.readouterr().err
    assert PackageCache(cache_directory()).find(key_of(warm)) is None


def test_learner_where_the_library_cannot_be_used_is_eager_and_keeps_the_package(
    warm: PackageSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PackageError("no such library")

    monkeypatch.setattr(backends, "libtorch", refuse)
    assert Learner(warm.plan, SPEC).path == "eager"
    said = "qfleet: the learner stays eager PyTorch: no such library\n"
    assert capsys.readouterr().err == said
    assert PackageCache(cache_directory()).find(key_of(warm)) is not None
    with pytest.raises(ConfigError, match=r"required: .* cannot be used .*--learner.compile off"):
        Learner(replace(warm.plan, compile="required"), SPEC)


def test_learner_takes_a_package_that_is_finished_while_it_learns(
    warm: PackageSpec, sample: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From there on it has the bits of a learner that began there with the package."""
    warm_root = os.environ["QFLEET_CACHE"]
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "empty"))
    learner = Learner(warm.plan, SPEC)
    for seed in range(3):
        learner.update_block(sample(seed))
    assert not learner.take_package()
    assert learner.path == "eager"
    before = learner.capture()

    monkeypatch.setenv("QFLEET_CACHE", warm_root)
    assert learner.take_package()

    assert learner.path == "compiled"
    assert learner.capture().arrays.keys() == before.arrays.keys()
    for name, array in learner.capture().arrays.items():
        assert np.array_equal(array, before.arrays[name]), name
    other = Learner(replace(warm.plan, compile="required"), SPEC)
    other.restore(before)
    assert isinstance(other._backend, PackageBackend)
    for seed in range(3, 503):
        errors = [one.update_block(sample(seed)) for one in (learner, other)]
        assert np.array_equal(*errors)
    assert learner.params_sha256() == other.params_sha256()
    assert learner.target_syncs == other.target_syncs


CUSTOM = """
import torch
from torch import nn

class Images(nn.Module):
    def __init__(self, n_inputs, n_actions):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1 / 255.0), requires_grad=False)
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int32))
        self.hidden = nn.Conv2d(3, 4, 2)
        # Laid out as no array from a checkpoint is.
        self.hidden.weight = nn.Parameter(
            self.hidden.weight.detach().to(memory_format=torch.channels_last)
        )
        self.head = nn.Linear(4, n_actions)

    def forward(self, x):
        x = torch.relu(self.hidden(x.reshape(-1, 3, 2, 2) * self.scale))
        return self.head(x.flatten(1))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_learner_custom_network_on_images_uses_its_package(
    plan_of: Plans, sample: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "images_network.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_of(factory="images_network:Images")
    eager = Learner(plan, TABLES)
    assert eager.path == "eager"
    prebuild(plan, TABLES)
    ours = Learner(plan, TABLES)
    assert ours.path == "compiled"
    for seed in range(50):
        errors = [one.update_block(sample(seed, spec=TABLES)) for one in (ours, eager)]
        np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-4)
    for name, array in ours.params().items():
        np.testing.assert_allclose(array, eager.params()[name], rtol=1e-3, atol=1e-4)


FRAMES = EnvironmentSpec("frames", (2, 36, 36), "|u1", 2, None, None, frame_stack=2)
SMALL = NetworkConfig(kind="small", hidden_sizes=(4,))


def test_convolutions_begin_eager_on_a_cpu_and_no_package_is_looked_for(
    plan_of: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plan: LearnerPlan, spec: EnvironmentSpec) -> None:
        raise AssertionError("no package is of use")

    monkeypatch.setattr(backends, "cached_backend", refuse)

    plans = [replace(plan_of(compile=m), network=SMALL) for m in ("auto", "off")]
    paths = [Learner(plan, FRAMES).path for plan in plans]

    assert paths == ["eager", "eager"]


def test_convolutions_that_must_be_compiled_are_refused_with_the_remedy(plan_of: Plans) -> None:
    with pytest.raises(
        ConfigError, match=r"network.kind small is not compiled on a CPU.*--learner.compile auto"
    ):
        Learner(replace(plan_of(compile="required"), network=SMALL), FRAMES)
