"""Questions that one insists on: asked again while nothing comes, each role apart."""

from __future__ import annotations

import pytest

from qfleet.cluster import answers, waits
from qfleet.cluster.answers import (
    FIRST_PATIENCE_S,
    INSIST_S,
    LEAST_PATIENCE_S,
    MAX_CALLS,
    ask,
    ask_by,
    insist,
    new_patience,
)
from qfleet.common.errors import CallLostError, RoleLostError, WaitTimeoutError


@pytest.fixture
def ray(hand_ray):
    return hand_ray(answers, waits)


@pytest.fixture
def two(ray, new_handle):
    return new_handle(), new_handle()


def ask_both(two, seconds, ray, first=()):
    return insist([handle.status.remote for handle in two], ray.now_s + seconds, first)


def test_only_the_role_that_has_not_answered_is_asked_again(two, ray):
    quick, slow = two

    def serve():
        for call in quick.open("status"):
            call.answer("quick")
        if len(slow.calls) == 3:
            slow.calls[1].answer("slow")  # the second of three calls

    ray.on_idle = serve
    began_s = ray.now_s
    found = ask_both(two, 60.0, ray)
    assert [ray.get(ref, timeout=0) for ref in found] == ["quick", "slow"]
    assert [len(handle.calls) for handle in two] == [2, 4]  # the wait by hand tells a round later
    assert ray.now_s - began_s == pytest.approx(2 * INSIST_S)


def test_call_that_ray_lost_is_no_answer_and_one_that_was_made_before_counts(two, ray):
    lost, dead = two
    first = [handle.status.remote() for handle in two]
    first[0].answer(ray.lost)
    first[1].answer(ray.dead)
    ray.on_idle = lambda: [call.answer(3) for call in lost.open("status")]
    found = ask_both(two, 1.0, ray, first)
    assert ray.get(found[0], timeout=0) == 3
    assert found[1] is first[1]
    assert len(dead.calls) == 1


def test_nothing_in_time_is_none_and_costs_no_longer(two, ray):
    began_s = ray.now_s
    assert ask_both(two, 1.0, ray) == [None, None]
    assert ray.now_s - began_s == pytest.approx(1.0)


def test_answer_that_is_there_is_taken_also_when_the_time_is_over(two, ray):
    first = [handle.status.remote() for handle in two]
    for call in first:
        call.answer(5)
    assert ask_both(two, -1.0, ray, first) == first


def test_insisting_is_ended_by_a_check(two, ray):
    def end(began_s):
        if ray.now_s - began_s > 0.5:
            raise SystemExit(143)

    with waits.asked_in_every_wait(end), pytest.raises(SystemExit):
        ask_both(two, 60.0, ray)


def test_ask_by_says_who_was_not_heard_and_who_died(two, ray):
    silent, dead = two
    with pytest.raises(WaitTimeoutError, match="driver heard nothing from the learner in time"):
        ask_by(silent.status.remote, "driver", "the learner", ray.now_s + 1.0)
    ray.on_idle = lambda: dead.calls[0].answer(ray.dead)
    with pytest.raises(RoleLostError, match="the learner died"):
        ask_by(dead.status.remote, "driver", "the learner", ray.now_s + 1.0)


def test_question_is_asked_again_while_its_answer_is_late_and_the_first_answer_counts(two, ray):
    role, _ = two
    moments = []

    def serve():
        if len(role.calls) > len(moments):
            moments.append(ray.now_s)
        if len(role.calls) == 3:
            role.calls[1].answer("second")

    ray.on_idle = serve
    began_s = ray.now_s
    assert ask(role.status.remote, "driver", "the learner") == "second"
    assert len(role.calls) == 3
    assert ray.now_s - began_s == pytest.approx(3 * FIRST_PATIENCE_S, abs=0.5)


def test_question_that_ray_lost_is_asked_again_at_once_and_not_for_ever(two, ray):
    role, _ = two
    ray.on_idle = lambda: [call.answer(ray.lost) for call in role.open("status")]
    with pytest.raises(CallLostError):
        ask(role.status.remote, "driver", "the learner")
    assert len(role.calls) == MAX_CALLS


def test_question_without_an_answer_is_given_up_after_its_time(two, ray):
    began_s = ray.now_s
    with pytest.raises(WaitTimeoutError, match="driver waited 9 s for the learner"):
        ask(two[0].status.remote, "driver", "the learner", 9.0)
    assert ray.now_s - began_s == pytest.approx(9.0, abs=0.5)
    assert 4 <= len(two[0].calls) <= 6


def test_role_that_answers_soon_is_asked_again_soon_with_one_patience_for_all(two, ray):
    role, _ = two
    patience = new_patience()
    for _ in range(20):
        first = role.status.remote()
        first.answer(1)
        assert ask(role.status.remote, "driver", "a", first=first, patience=patience) == 1
    asked = len(role.calls)
    ray.on_idle = lambda: [call.answer(2) for call in role.calls[asked + 1 :]]
    began_s = ray.now_s
    assert ask(role.status.remote, "driver", "a", patience=patience) == 2
    assert ray.now_s - began_s < 3.5 * LEAST_PATIENCE_S < FIRST_PATIENCE_S


def test_call_of_several_values_is_answered_as_a_list(two, ray):
    parts = [two[0].status.remote(), two[0].status.remote()]
    for value, part in enumerate(parts):
        part.answer(value)
    assert ask(lambda: parts, "driver", "a piece") == [0, 1]
