"""What the tests with real processes share: small configurations, Ray once per module, a spy."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

SOURCE = Path(__file__).resolve().parents[2] / "src"
SMALL = {
    "actors.count": 1,
    "actors.envs_per_actor": 2,
    "network.hidden_sizes": [16],
    "replay.capacity": 2000,
    "replay.min_size_to_sample": 100,
    "learner.batch_size": 16,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 200,
    "eval.episodes": 2,
    "eval.confirm_episodes": 2,
    # Out of reach (CartPole stops at 500): two lucky episodes must not end a test's run.
    "eval.solved_at_return": 1000,
    "run.max_learner_steps": 400,
    "metrics.console": "plain",
}


def small_config(**changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    small = dict(SMALL)
    if "network.factory" in overrides:  # which has no hidden sizes
        del small["network.hidden_sizes"]
    return load_config("cartpole", [], {**small, **overrides})


@pytest.fixture
def config():
    """Builds a small configuration; `learner__batch_size=8` changes a key."""
    return small_config


@pytest.fixture
def small_flags():
    """The same as words of a command line."""
    return [
        word
        for key, value in SMALL.items()
        for word in (f"--{key}", ",".join(map(str, value)) if isinstance(value, list) else value)
    ]


@pytest.fixture(scope="module")
def ray_started():
    """Ray as `train` starts it, with room for every test of the module; `train` joins it."""
    import ray

    from qfleet.cluster.ray_cluster import connect, disconnect

    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])
    )
    roomy = resolve_config(small_config(actors__count=12, ray__lean=True), None, cpus=2, gpus=0)
    cluster = connect(run_plans(roomy).cluster)
    yield ray
    assert ray.is_initialized(), "train must leave a Ray that it joined"
    disconnect(cluster)


@pytest.fixture
def outcomes(monkeypatch):
    """Outcome and session of every run, in order, as `finish` saw them."""
    from qfleet import training

    seen = []
    finish = training.finish

    def noting(session, outcome):
        seen.append(SimpleNamespace(session=session, outcome=outcome))
        return finish(session, outcome)

    monkeypatch.setattr(training, "finish", noting)
    return seen


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """`runs/` and modules of the test's own; the import path comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
