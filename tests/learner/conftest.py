"""What tests of compiled blocks share: a cache of their own and one small package in it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from qfleet.common.config import Config
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.compiled import PackageSpec
from qfleet.learner.learner_path import BuildProcess

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


class BuiltPackage(NamedTuple):
    """A finished build: the run that it is for, and the cache it lies in."""

    spec: PackageSpec
    cache_root: Path


def compiled_config(**learner: object) -> Config:
    """The smallest run that has everything: BatchNorm, double Q, clipping, hard syncs."""
    return Config(
        network={"hidden_sizes": (8,), "normalization": "batch"},
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


@pytest.fixture(scope="session")
def built_package(tmp_path_factory: pytest.TempPathFactory) -> BuiltPackage:
    """The package of `compiled_config()`, compiled once by the process that runs compile with."""
    root = tmp_path_factory.mktemp("qfleet-cache")
    config = compiled_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QFLEET_CACHE", str(root))
        build = BuildProcess(config, SPEC)
        try:
            failure = build.wait()
        finally:
            build.end()
    assert failure is None, failure
    return BuiltPackage(PackageSpec(config, SPEC), root)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees the packages of this machine's user."""
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
