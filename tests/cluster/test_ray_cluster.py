"""What a Ray of our own is started with, and how the driver waits for one that is there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import ray_cluster
from qfleet.settings.config import Config, RayConfig
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans


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


def plan_of(**ray):
    config = Config(ray=RayConfig(**ray), actors={"count": 1})
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).cluster


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
    ray_cluster.connect(plan_of(**keys))
    assert fake_ray.lean is is_lean
    assert len(fake_ray.inits) == 1


def test_resource_table_shows_wanted_present_and_free(fake_ray):
    # The learner's 1, and 0.5 each for shard, actor and evaluator.
    assert ray_cluster.resource_table(plan_of()) == (
        "  CPU: wanted 2.5, the cluster has 2, of which 0.5 are free\n"
        "  GPU: wanted 0, the cluster has 0, of which 0 are free"
    )
