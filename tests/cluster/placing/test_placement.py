"""What is wanted against what there is, and the wait until there is room, against a Ray by hand."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace

import pytest

from qfleet.cluster.placing import placement
from qfleet.cluster.placing.needs import RoleNeed, how_many_fit, table, total
from qfleet.cluster.placing.placement import Placement
from qfleet.common.errors import ResourcesError

NEEDS = [
    RoleNeed(role="learner", count=1, least=1, each={"CPU": 1.0, "GPU": 1.0}),
    RoleNeed(role="replay shard", count=2, least=2, each={"CPU": 0.5, "big": 1.0}),
    RoleNeed(role="actor", count=8, least=2, each={"CPU": 0.5}),
]
TOGETHER = "1 learner (CPU 1, GPU 1) and 2 replay shards (CPU 0.5, big 1)"


@pytest.fixture
def ray():
    """A cluster of two hosts whose free resources and placement a test sets; time is by hand."""
    ray = SimpleNamespace(now_s=100.0, is_placed=False, free={"CPU": 0.5})

    def wait(refs, timeout):
        ray.now_s += 0.0 if ray.is_placed else timeout
        return (refs, []) if ray.is_placed else ([], refs)

    ray.wait = wait
    ray.available_resources = lambda: ray.free
    ray.cluster_resources = lambda: {"CPU": 3.0, "big": 1.0}
    ray.nodes = lambda: [
        {"Alive": True, "NodeManagerHostname": "h1", "Resources": {"CPU": 1.0, "big": 1.0}},
        {"Alive": True, "NodeManagerHostname": "h2", "Resources": {"CPU": 2.0}},
        {"Alive": False, "NodeManagerHostname": "h3", "Resources": {"CPU": 9.0}},
    ]
    return ray


@pytest.fixture
def make(ray, monkeypatch):
    def sleep(seconds):
        ray.now_s += seconds

    clock = SimpleNamespace(monotonic=lambda: ray.now_s, sleep=sleep)
    monkeypatch.setattr(placement, "time", clock)
    monkeypatch.setattr(
        importlib.import_module("ray.util.placement_group"),
        "placement_group",
        lambda bundles, strategy: SimpleNamespace(bundles=bundles, ready=lambda: "ready"),
    )

    def make(wait_s):
        learner, shards, actors = NEEDS
        plan = SimpleNamespace(
            together=(learner, shards),
            actors=actors,
            needs=NEEDS,
            resources=total(NEEDS),
            wait_for_resources_s=wait_s,
        )
        return Placement(ray, plan)

    return make


@pytest.mark.parametrize(
    ("each", "free", "fit"),
    [
        ({"CPU": 0.5}, {"CPU": 1.9}, 3),
        ({"CPU": 0.1}, {"CPU": 0.3}, 3),  # 0.3 / 0.1 is less than 3 in floats
        ({"CPU": 0.5, "big": 1.0}, {"CPU": 8.0, "big": 2.0}, 2),
        ({"CPU": 0.5, "big": 1.0}, {"CPU": 8.0}, 0),
        ({}, {}, math.inf),
        ({"CPU": 0.0}, {}, math.inf),
    ],
)
def test_how_many_fit_by_hand(each, free, fit):
    assert how_many_fit(each, free) == fit


def test_table_has_every_kind_of_role_every_resource_and_every_living_host(ray):
    assert table(NEEDS, ray).splitlines() == [
        f"  wanted by {TOGETHER.replace(' and', ',')}, 8 actors (CPU 0.5)",
        "  CPU: wanted 6, the cluster has 3, of which 0.5 are free",
        "  GPU: wanted 1, the cluster has 0, of which 0 are free",
        "  big: wanted 2, the cluster has 1, of which 0 are free",
        "  host h1 has CPU 1, big 1",
        "  host h2 has CPU 2",
    ]


def test_learner_and_shards_are_bundles_of_one_group(make):
    assert make(60.0).group.bundles == [
        {"CPU": 1.0, "GPU": 1.0},
        {"CPU": 0.5, "big": 1.0},
        {"CPU": 0.5, "big": 1.0},
    ]


def test_wait_says_every_5_s_who_waits_for_what_and_ends_with_the_table(ray, make):
    told = []
    with pytest.raises(
        ResourcesError, match=r"no room for 12 s .*_s = 12\):\n  wanted by"
    ) as error:
        make(12.0).wait(lambda text: told.append((ray.now_s - 100.0, text)), with_actors=True)
    lack = (
        "1 learner (CPU 1, GPU 1) and 2 replay shards (CPU 0.5, big 1) want places together; "
        "free are CPU 0.5, GPU 0, big 0"
    )
    assert [text for _, text in told] == [
        f"waiting for room ({s} of 12 s): {lack}" for s in (0, 5, 10)
    ]
    assert [at_s for at_s, _ in told] == pytest.approx([0, 5, 10], abs=0.3)
    assert error.value.exit_code == 2
    assert str(error.value).endswith("raise ray.wait_for_resources_s")


def test_wait_of_nothing_is_over_at_once_and_says_so_once(ray, make):
    told = []
    with pytest.raises(ResourcesError, match=r"wait_for_resources_s = 0\)"):
        make(0.0).wait(told.append, with_actors=True)
    assert (told, ray.now_s - 100.0) == ([], pytest.approx(5.0, abs=0.3))


@pytest.mark.parametrize(("with_actors", "waits"), [(True, True), (False, False)])
def test_first_actors_must_have_room_and_no_more_of_them(ray, make, with_actors, waits):
    ray.is_placed, told = True, []

    def tell(text):
        told.append(text)
        ray.free = {"CPU": 1.0}  # a host has come: room for two of the eight

    make(60.0).wait(tell, with_actors=with_actors)
    said = "2 of 8 actors (CPU 0.5) want places; free are CPU 0.5, GPU 0, big 0"
    assert told == [f"waiting for room (0 of 60 s): {said}"] * waits
