"""What the tests of packages share: a small run, its samples, and one package built per session."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.common.config import NetworkConfig
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.learner.fast import notices
from qfleet.learner.fast.package_builds import BuildProcess
from qfleet.learner.fast.package_spec import PackageSpec
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)  # these networks are too small for more

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
VARIANTS: dict[str, dict[str, Any]] = {
    "batch-double-clip": {},
    "none-mse": {"normalization": "none", "loss": "mse", "max_grad_norm": None},
    "layer-adam": {"normalization": "layer", "optimizer": "adam"},
    "batch-radam-polyak": {"optimizer": "radam", "target_tau": 0.05},
    "batch-no-target": {"target_network": False, "double_q": False},
    "polyak-single": {"target_tau": 0.01, "double_q": False, "loss": "mse"},
}

FAMILY: dict[str, dict[str, Any]] = {
    "c51-dueling": {
        "distribution": "c51",
        "atoms": 5,
        "value_min": -2,
        "value_max": 2,
        "dueling": True,
    },
    "munchausen": {"munchausen": True, "double_q": False},
    "iqn-noisy": {"distribution": "iqn", "atoms": 3, "noisy": True, "hidden_sizes": (8, 4)},
}


def small_plan(**changes: Any) -> LearnerPlan:
    """The smallest run that has everything: BatchNorm, double Q, clipping, hard syncs."""
    learner = dict(changes)
    network = {"hidden_sizes": (8,), "normalization": "batch"}
    network |= {key: learner.pop(key) for key in NetworkConfig.model_fields if key in learner}
    if "factory" in network:
        network = {"factory": network["factory"]}
    config = Config(
        network=network,
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
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


def small_sample(
    seed: int, k: int = 4, scale: float = 1.0, spec: EnvironmentSpec = SPEC
) -> ReplaySample:
    """Targets that a network can learn, so that rounding errors do not grow without bound."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(2, k, 4, *spec.observation_shape)) * scale
    if spec.observation_dtype == "|u1":
        numbers = rng.integers(0, 256, numbers.shape)
    observations = numbers.astype(spec.observation_dtype)
    columns = {
        "observation": observations[0],
        "action": rng.integers(0, 2, (k, 4)).astype(np.int32),
        "n_step_return": numbers[0].mean(axis=tuple(range(2, numbers.ndim - 1))).astype(np.float32),
        "bootstrap_discount": np.full((k, 4), 0.5, np.float32),
        "next_observation": observations[1],
    }
    zeros = np.zeros((k, 4), np.int64)
    weights = rng.uniform(0.5, 1.0, (k, 4)).astype(np.float32)
    return ReplaySample(columns, zeros, zeros.astype(np.int32), weights)


@pytest.fixture
def plan_of() -> Callable[..., LearnerPlan]:
    """`small_plan`."""
    return small_plan


@pytest.fixture
def sample() -> Callable[..., ReplaySample]:
    """`small_sample`."""
    return small_sample


@pytest.fixture(params=FAMILY)
def member(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same of the family's other losses and heads."""
    return FAMILY[request.param]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a run may change about the block's computation."""
    return VARIANTS[request.param]


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
    """A machine that cannot build."""
    monkeypatch.setenv("CXX", "no-such-compiler")
