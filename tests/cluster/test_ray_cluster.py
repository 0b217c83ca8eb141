"""What a Ray of our own is started with, and how the driver waits for one that is there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import ray_cluster
from qfleet.common.config import Config, RayConfig


@pytest.fixture
def fake_ray(monkeypatch):
    """Stands in for the module; notes how it was started and whether within a lean start."""
    seen = SimpleNamespace(inits=[], lean=False)

    class LeanStart:
        def __init__(self, ray):
            pass

        def __enter__(self):
            seen.lean = True

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: seen.inits.append(options),
        cluster_resources=lambda: {"CPU": 2.0},
        available_resources=lambda: {"CPU": 0.5},
    )
    monkeypatch.setattr(ray_cluster, "import_ray", lambda: fake)
    monkeypatch.setattr(ray_cluster, "lean_start", LeanStart)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_enable_metrics_collection", raising=False)
    return seen


def resolved(**ray):
    config = Config(ray=RayConfig(**ray))
    learner = config.learner.model_copy(update={"num_gpus": 0})
    actors = config.actors.model_copy(update={"count": 1})
    return config.model_copy(update={"learner": learner, "actors": actors})


@pytest.mark.parametrize(
    ("keys", "metrics", "is_lean"),
    [
        ({"lean": True}, None, True),
        ({"lean": False}, None, False),
        ({}, None, False),
        ({"lean": True, "ship": ["my_env.py"]}, None, False),
        # The variable says what it says to Ray, and nothing else.
        ({"lean": True}, "1", True),
        ({"lean": False}, "0", False),
    ],
)
def test_connect_is_lean_by_its_key_alone(fake_ray, monkeypatch, keys, metrics, is_lean):
    if metrics is not None:
        monkeypatch.setenv("RAY_enable_metrics_collection", metrics)
    ray_cluster.connect(resolved(**keys))
    assert fake_ray.lean is is_lean
    assert len(fake_ray.inits) == 1


def test_resource_table_shows_wanted_present_and_free(fake_ray):
    config = resolved()
    wanted = ray_cluster.wanted_resources(config)["CPU"]
    assert ray_cluster.resource_table(config) == (
        f"  CPU: wanted {wanted:g}, the cluster has 2, of which 0.5 are free\n"
        "  GPU: wanted 0, the cluster has 0, of which 0 are free"
    )
