"""One tick of the asynchronous loop, with roles played by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster.polled_call import HESITATION_S, PolledCall
from qfleet.fleets import async_loop
from qfleet.fleets.async_loop import AsyncLoop


@pytest.fixture
def loop(by_hand, hand_ray, monkeypatch):
    """A loop in the middle of a run whose only poll is of the learner."""
    hand_ray(async_loop)
    loop = AsyncLoop.__new__(AsyncLoop)
    loop.roles, loop.order = by_hand, []
    loop._learner_status, loop._shard_reports = None, {}
    loop._learner_run = by_hand.learner.run.remote()

    def noting(name):
        return lambda *_: loop.order.append(name)

    loop._actors = SimpleNamespace(
        runs={}, poll=noting("actors polled"), fill_slots=noting("actors replaced")
    )
    loop._evaluations = SimpleNamespace(
        due=by_hand.learner.await_evaluation.remote(),
        evaluating=None,
        go_on=noting("evaluator looked after"),
    )
    loop.checkpoint = noting("cut")
    return loop


@pytest.fixture
def session():
    return SimpleNamespace(
        incident=print, checkpoint_due=lambda: True, stop_reason=lambda: None, observe=print
    )


def test_no_cut_is_begun_while_a_role_says_nothing(loop, session, by_hand, hand_ray):
    ray = hand_ray()
    polls = {"learner": PolledCall(by_hand.learner.status.remote, "the learner")}
    began_s = ray.now_s
    while ray.now_s - began_s < HESITATION_S + 5.0:
        loop._tick(session, polls)
        if ray.now_s - began_s < HESITATION_S - 0.1:
            assert "cut" in loop.order
        loop.order.clear()
    loop._tick(session, polls)
    assert "cut" not in loop.order


def test_evaluator_has_its_place_before_any_actor_is_replaced(loop, session):
    loop._tick(session, {})
    assert loop.order == ["actors polled", "evaluator looked after", "actors replaced", "cut"]
