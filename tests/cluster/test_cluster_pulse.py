"""A cluster that accepts no connections any more is noticed, one that comes back is not."""

from __future__ import annotations

import socket
import time

import pytest

from qfleet.cluster import cluster_pulse
from qfleet.cluster.cluster_pulse import ClusterPulse, Service
from qfleet.common.errors import ClusterLostError

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def listener():
    sockets = []

    def listen(port=0):
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
        found.listen(64)
        sockets.append(found)
        return found, Service("its GCS", "127.0.0.1", found.getsockname()[1])

    yield listen
    for found in sockets:
        found.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cluster_pulse, "PERIOD_S", 0.02)


def wait_until(condition):
    ends_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_pulse_of_a_service_that_ends_names_it(listener):
    found, service = listener()
    with ClusterPulse([service], lost_after_s=0.2) as pulse:
        time.sleep(0.4)
        pulse.end_wait(0.0)  # it lives
        pulse.settle()
        closed_s = time.monotonic()
        found.close()
        wait_until(lambda: pulse.is_lost)
        assert time.monotonic() - closed_s >= 0.2
        with pytest.raises(ClusterLostError, match=f"its GCS .* at 127.0.0.1:{service.port}"):
            pulse.end_wait(0.0)
        with pytest.raises(ClusterLostError):
            pulse.settle()
    assert ClusterLostError.exit_code == 5


def test_pulse_of_a_service_that_comes_back_goes_on(listener):
    found, service = listener()
    with ClusterPulse([service], lost_after_s=2.0) as pulse:
        found.close()
        time.sleep(0.3)
        listener(service.port)
        pulse.settle()
        time.sleep(2.2)
        assert not pulse.is_lost


def test_one_of_two_services_is_enough_to_be_lost(listener):
    _, first = listener()
    gone, second = listener()
    gone.close()
    with ClusterPulse([first, second], lost_after_s=0.1) as pulse:
        wait_until(lambda: pulse.is_lost)
