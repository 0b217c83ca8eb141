"""When an acknowledgement waits for parameters that are on their way, and when it does not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qfleet.replay_server import announced_params
from qfleet.replay_server.announced_params import AnnouncedParams

LONG_S = 30.0


@pytest.fixture
def lock():
    return threading.Lock()


@pytest.fixture
def params(lock):
    return AnnouncedParams(lock)


def awaited(params, lock):
    """The version that is there once the wait is over."""
    with lock:
        params.await_coming()
        return params.newest.version


def announce(params, lock, version):
    with lock:
        params.announce(version, 0, f"payload {version}", None)


def test_what_was_published_is_waited_for(params, lock, monkeypatch):
    monkeypatch.setattr(announced_params, "COMING_S", LONG_S)
    monkeypatch.setattr(announced_params, "FRESH_S", 0.0)
    announce(params, lock, 1)
    params.expect(3)
    params.expect(2)  # asked before, came later
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(awaited, params, lock)
        announce(params, lock, 2)
        time.sleep(0.05)
        assert not answer.done()
        announce(params, lock, 3)
        assert answer.result(LONG_S) == 3


def test_nobody_waits_beside_a_fresh_announcement(params, lock, monkeypatch):
    monkeypatch.setattr(announced_params, "COMING_S", 100 * LONG_S)
    monkeypatch.setattr(announced_params, "FRESH_S", 100 * LONG_S)
    announce(params, lock, 1)
    params.expect(2)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(awaited, params, lock)
        try:
            assert answer.result(LONG_S) == 1
        finally:
            announce(params, lock, 2)  # ends a wait that should not have been


def test_wait_ends_when_the_announcement_does_not_come(params, lock, monkeypatch):
    monkeypatch.setattr(announced_params, "FRESH_S", 0.0)
    announce(params, lock, 1)
    params.expect(2)
    started_s = time.monotonic()

    assert awaited(params, lock) == 1
    assert time.monotonic() - started_s >= announced_params.COMING_S


def test_older_announcements_are_ignored_and_the_first_is_waited_for(params, lock):
    with lock:
        assert params.await_first(0.01).version == 0
    announce(params, lock, 5)
    announce(params, lock, 4)
    with lock:
        assert params.await_first(0.0) == (5, 0, "payload 5", None)
