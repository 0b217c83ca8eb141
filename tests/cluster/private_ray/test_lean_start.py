"""Ray's helpers are left out by name, in releases that were tried, and everything is put back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster.private_ray.lean_start import lean_start
from qfleet.common.errors import ResourcesError

ray = pytest.importorskip("ray")

HELPERS = ("start_api_server", "start_monitor", "start_log_monitor")


def originals():
    from ray._private import services, utils
    from ray._private.node import Node

    return [
        *(getattr(Node, name) for name in HELPERS),
        utils.get_dashboard_dependency_error,
        services.get_node,
    ]


def test_lean_start_applies_to_the_installed_ray():
    before = originals()
    with lean_start(ray) as is_lean:
        assert is_lean, f"try Ray {ray.__version__} without its helpers, then add it to the list"
        within = originals()
    assert all(new is not old for new, old in zip(within, before, strict=True))
    assert originals() == before


def test_lean_start_puts_everything_back_after_an_error():
    before = originals()
    with pytest.raises(ZeroDivisionError), lean_start(ray):
        raise ZeroDivisionError
    assert originals() == before


@pytest.mark.parametrize("version", ["2.59.1", "2.61.0", "3.0.0", "2.6.0"])
def test_lean_start_leaves_other_releases_alone(version):
    before = originals()
    with lean_start(SimpleNamespace(__version__=version)) as is_lean:
        assert not is_lean
        assert originals() == before


def test_lean_start_with_a_name_missing_replaces_nothing(monkeypatch):
    from ray._private import services
    from ray._private.node import Node

    monkeypatch.delattr(Node, "start_monitor")
    before = services.get_node
    with lean_start(ray) as is_lean:
        assert not is_lean
        assert services.get_node is before


def test_get_node_asks_only_once_the_node_is_registered(monkeypatch):
    from ray._private import services

    known = [[], [SimpleNamespace(hex=lambda: "other")], [SimpleNamespace(hex=lambda: "mine")]]
    asked = []

    class Client:
        def __init__(self, address):
            asked.append(address)

        def get_all_node_info(self):
            return known.pop(0)

    monkeypatch.setattr(services, "GcsClient", Client)
    monkeypatch.setattr(services, "get_node", lambda *words: asked.append(words) or {"port": 1})
    with lean_start(ray):
        assert services.get_node("host:1", "mine") == {"port": 1}
    assert known == []
    assert asked == ["host:1", ("host:1", "mine")]


def test_get_node_does_not_wait_for_a_node_that_cannot_come(monkeypatch):
    from ray._private import services

    class Client:
        def __init__(self, address):
            pass

        def get_all_node_info(self):
            return []

    def check():
        raise ResourcesError("raylet ended with code -9")

    monkeypatch.setattr(services, "GcsClient", Client)
    with lean_start(ray, check), pytest.raises(ResourcesError, match="raylet ended"):
        services.get_node("host:1", "mine")
