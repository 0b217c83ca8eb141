"""What a Ray of our own is started with, and how the driver waits for one that is there."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from qfleet.cluster import ray_cluster
from qfleet.common.errors import ResourcesError
from qfleet.settings.config import Config, RayConfig
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans


@pytest.fixture
def fake_ray(monkeypatch, tmp_path):
    """Stands in for the module; notes how it was started and whether within a lean start."""
    seen = SimpleNamespace(inits=[], lean=False)

    class LeanStart:
        def __init__(self, ray, check):
            pass

        def __enter__(self):
            seen.lean = True

        def __exit__(self, *_):
            pass

    node = SimpleNamespace(get_session_dir_path=lambda: str(tmp_path))
    fake = SimpleNamespace(
        _private=SimpleNamespace(worker=SimpleNamespace(_global_node=node)),
        is_initialized=lambda: False,
        init=lambda **options: seen.inits.append(options),
    )
    monkeypatch.setattr(ray_cluster, "import_ray", lambda: fake)
    monkeypatch.setattr(ray_cluster, "lean_start", LeanStart)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
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
    cluster = ray_cluster.connect(plan_of(**keys), print)
    cluster.own.end()
    assert fake_ray.lean is is_lean
    assert len(fake_ray.inits) == 1


def test_own_ray_is_given_what_the_roles_ask_for_custom_resources_too(fake_ray):
    pins = {"learner_resources": {"gpu_host": 0.01}, "actor_resources": {"player": 1}}
    ray_cluster.connect(plan_of(**pins), print).own.end()
    [options] = fake_ray.inits
    # The learner's 1, and 0.5 each for shard and actor.
    assert (options["num_cpus"], options["resources"]) == (2, {"gpu_host": 0.01, "player": 1.0})


def test_ray_that_does_not_start_is_a_matter_of_resources_and_puts_all_back(fake_ray, monkeypatch):
    from ray._private import services

    before = services.ConsolePopen

    def init(**_):
        raise RuntimeError("The current node timed out during startup")

    monkeypatch.setattr(ray_cluster.import_ray(), "init", init)
    with pytest.raises(ResourcesError, match=r"timed out during startup.*qfleet doctor") as raised:
        ray_cluster.connect(plan_of(), print)
    assert raised.value.exit_code == 2
    assert services.ConsolePopen is before


def test_service_that_dies_while_ray_starts_ends_the_start_at_once(fake_ray, monkeypatch):
    starts, ends = threading.Event(), threading.Event()

    def init(**_):  # as Ray waits for a GCS that is gone: in a call that nothing ends
        process = services.ConsolePopen(["gcs_server_of_a_test"], executable="/bin/false")
        process.wait()
        starts.set()
        ends.wait(30.0)

    from ray._private import services

    monkeypatch.setattr(ray_cluster.import_ray(), "init", init)
    began_s = time.monotonic()
    with pytest.raises(
        ResourcesError, match="did not start: gcs_server_of_a_test ended with code 1; `qfleet doc"
    ):
        ray_cluster.connect(plan_of(), print)
    assert starts.is_set()
    assert time.monotonic() - began_s < 10.0
    ends.set()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "joining Ray at 10.0.0.1:6379"),
        (["10.0.0.2:6379"], "joining Ray at 10.0.0.1:6379; others answer too: 10.0.0.2:6379"),
    ],
)
def test_auto_says_the_address_that_it_found_and_warns_of_others(
    fake_ray, monkeypatch, others, said
):
    monkeypatch.setattr(ray_cluster, "resolve", lambda address: ("10.0.0.1:6379", others))
    monkeypatch.setattr(ray_cluster, "probe", lambda address, written: None)
    monkeypatch.setattr(ray_cluster, "join", lambda ray, address, options: None)
    told = []

    cluster = ray_cluster.connect(plan_of(address="auto"), told.append)

    assert told == [said]
    assert cluster.own is None


def test_what_a_cycle_holds_is_collected_before_ray_is_shut_down(monkeypatch):
    class Node:
        pass

    node = Node()
    node.itself = node
    alive, seen = weakref.ref(node), []
    fake = SimpleNamespace(shutdown=lambda: seen.append(alive()))
    monkeypatch.setattr(ray_cluster, "import_ray", lambda: fake)
    gc.disable()
    try:
        del node
        assert alive() is not None
        ray_cluster.disconnect(ray_cluster.Cluster(True, None, "ours"))
    finally:
        gc.enable()
    assert seen == [None]
