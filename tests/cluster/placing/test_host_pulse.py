"""Hosts that stop answering and answer again, as real sockets and a clock by hand."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest

from qfleet.cluster.placing import host_pulse
from qfleet.cluster.placing.host_pulse import LOST_AFTER_S, HostPulse, LostHost


@pytest.fixture
def listening():
    """A raylet that accepts connections until it is closed."""
    server = socket.create_server(("127.0.0.1", 0))
    yield server
    server.close()


@pytest.fixture
def hosts(listening, monkeypatch):
    monkeypatch.setattr(host_pulse, "PERIOD_S", 0.01)
    port = listening.getsockname()[1]
    nodes = [
        {
            "NodeID": node,
            "NodeManagerHostname": node,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerPort": port,
        }
        for node in ("own", "h2")
    ]
    ray = SimpleNamespace(
        nodes=lambda: nodes,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "own"),
    )
    where = {"learner": "own", "actor-0-0": "h2", "replay-1": "h2"}
    places = SimpleNamespace(
        all=lambda: {role: SimpleNamespace(node_id=node) for role, node in where.items()}
    )
    pulse = HostPulse(ray, places)
    yield SimpleNamespace(pulse=pulse, where=where, port=port)
    pulse.close()


def await_probe(pulse, is_heard):
    """Until the only probe has (not) heard of its host for a while."""
    [probe] = pulse._probes.values()
    ends_s = time.monotonic() + 5.0
    while time.monotonic() < ends_s:
        before = probe.heard_s
        time.sleep(0.1)
        if (probe.heard_s > before) == is_heard:
            return probe
    raise AssertionError("the probe did not see it")


def test_host_that_stops_answering_is_told_once_with_its_roles_and_when_it_is_back(
    hosts, listening
):
    pulse = hosts.pulse
    assert list(pulse.look(time.monotonic())) == []
    probe = await_probe(pulse, is_heard=True)
    assert list(pulse.look(time.monotonic())) == []

    listening.close()
    await_probe(pulse, is_heard=False)
    lost_s = probe.heard_s + LOST_AFTER_S
    assert list(pulse.look(lost_s - 0.1)) == []
    reason = "host h2 (127.0.0.1) has accepted no connection for 6 s"
    assert list(pulse.look(lost_s)) == [LostHost(reason, ["actor-0-0", "replay-1"])]
    del hosts.where["actor-0-0"], hosts.where["replay-1"]  # they were given up
    assert list(pulse.look(lost_s + 5.0)) == []

    with socket.create_server(("127.0.0.1", hosts.port)):
        await_probe(pulse, is_heard=True)
        assert list(pulse.look(probe.heard_s)) == ["host h2 (127.0.0.1) answers again"]
        assert list(pulse.look(probe.heard_s)) == []


def test_host_that_no_role_is_on_any_more_is_not_asked(hosts):
    list(hosts.pulse.look(time.monotonic()))
    del hosts.where["actor-0-0"], hosts.where["replay-1"]
    assert list(hosts.pulse.look(time.monotonic())) == []
    assert hosts.pulse._probes == {}
