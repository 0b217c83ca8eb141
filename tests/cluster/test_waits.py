"""Every wait for a role ends: by its answer, its time, a signal, or a cluster that is gone."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from qfleet.cluster import answers, waits
from qfleet.cluster.answers import answer
from qfleet.cluster.waits import Wait, ask_checks, asked_in_every_wait
from qfleet.common.errors import ClusterLostError, RoleLostError, WaitTimeoutError

ray = pytest.importorskip("ray")


@pytest.fixture
def silent_role(monkeypatch):
    """Ray as a role shows it that does not answer; time passes as fast as it is asked."""
    clock = SimpleNamespace(now_s=50.0, asked=0)

    def get(ref, timeout):
        clock.asked += 1
        clock.now_s += timeout
        if ref is not None and clock.now_s >= ref:
            return "answer"
        raise ray.exceptions.GetTimeoutError("nothing yet")

    fake = SimpleNamespace(get=get, exceptions=ray.exceptions)
    monkeypatch.setattr(answers, "import_ray", lambda: fake)
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def test_answer_that_comes_is_given(silent_role):
    assert answer(51.0, "driver", "the learner", 10.0) == "answer"
    assert silent_role.now_s == 51.0


def test_answer_after_its_time_names_who_waited_for_whom(silent_role):
    with pytest.raises(WaitTimeoutError, match="driver waited 10 s for the learner"):
        answer(None, "driver", "the learner", 10.0)
    assert silent_role.now_s == 60.0


def test_answer_asks_every_check_with_the_begin_of_the_wait(silent_role):
    seen = []

    def gone(began_s):
        seen.append((began_s, silent_role.now_s))
        if silent_role.now_s >= 51.0:
            raise ClusterLostError("its GCS is gone")

    with asked_in_every_wait(gone), pytest.raises(ClusterLostError):
        answer(None, "driver", "the learner", 600.0)
    assert seen == [(50.0, 50.25), (50.0, 50.5), (50.0, 50.75), (50.0, 51.0)]
    ask_checks(0.0)  # nobody is asked any more


def test_answer_calls_the_watch_while_nothing_comes(silent_role):
    calls = []

    def watch():
        calls.append(silent_role.now_s)
        if len(calls) == 3:
            raise RoleLostError("actor 2 hangs")

    with pytest.raises(RoleLostError, match="actor 2 hangs"):
        answer(None, "driver", "a round", 600.0, watch)
    assert calls == [50.25, 50.5, 50.75]


def test_wait_without_time_asks_once_and_ends():
    wait = Wait(0.0)
    assert wait.slice_s == 0.0
    assert wait.goes_on() is False


def test_wait_is_as_long_as_it_says():
    began_s = time.monotonic()
    wait = Wait(0.3)
    while wait.goes_on():
        time.sleep(wait.slice_s)
    assert 0.3 <= time.monotonic() - began_s < 1.0
