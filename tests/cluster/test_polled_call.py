"""A question that is asked again and again: silence is an error in time, a lost call is none."""

from __future__ import annotations

import pytest

from qfleet.cluster import answers, polled_call
from qfleet.cluster.answers import FIRST_PATIENCE_S, LEAST_PATIENCE_S, MOST_PATIENCE_S
from qfleet.cluster.polled_call import (
    HESITATION_S,
    POLL_S,
    SILENCE_TIMEOUT_S,
    PolledCall,
)
from qfleet.common.errors import RoleLostError, WaitTimeoutError


@pytest.fixture
def ray(hand_ray):
    return hand_ray(polled_call, answers)


@pytest.fixture
def role(ray, new_handle):
    return new_handle()


def asked(role, **options):
    return PolledCall(role.status.remote, "the learner", **options)


def test_one_question_at_a_time_and_the_next_after_its_period(role):
    call = asked(role)
    assert [call.poll(now_s) for now_s in (0.0, 0.1, 0.4)] == [None, None, None]
    [question] = role.calls
    question.answer(7)
    assert call.poll(3.1) == 7
    call.poll(3.1)
    assert len(role.calls) == 2
    role.calls[1].answer(8)
    assert call.poll(3.2) == 8
    call.poll(3.1 + POLL_S - 0.01)
    assert len(role.calls) == 2


def test_role_that_stopped_is_noticed_within_a_minute(role):
    call = asked(role)
    call.poll(100.0)
    role.calls[0].answer(1)
    call.poll(101.0)
    call.poll(102.0)
    assert SILENCE_TIMEOUT_S < 60.0
    assert call.poll(101.0 + SILENCE_TIMEOUT_S) is None
    with pytest.raises(WaitTimeoutError, match="driver heard nothing from the learner for 45 s"):
        call.poll(101.1 + SILENCE_TIMEOUT_S)


def test_role_that_starts_is_given_its_time(role):
    call = asked(role, has_answered=False)
    call.poll(0.0)
    assert call.poll(179.0) is None
    with pytest.raises(WaitTimeoutError, match="for 180 s"):
        call.poll(181.0)


def test_silence_that_has_a_reason_counts_anew(role):
    call = asked(role)
    call.poll(0.0)
    call.excuse(40.0)
    assert call.poll(84.0) is None
    with pytest.raises(WaitTimeoutError):
        call.poll(86.0)


def test_role_hesitates_while_an_answer_is_overdue(role):
    call = asked(role)
    call.poll(0.0)
    assert [call.hesitates(now_s) for now_s in (HESITATION_S, HESITATION_S + 0.1)] == [False, True]
    role.calls[0].answer(1)
    call.poll(HESITATION_S + 0.2)
    assert not call.hesitates(HESITATION_S + 0.3)


def test_call_that_ray_lost_is_asked_again_and_a_dead_role_is_told(role, ray):
    call = asked(role)
    call.poll(0.0)
    role.calls[0].answer(ray.lost)
    assert call.poll(1.0) is None
    call.poll(1.1)
    role.calls[1].answer(ray.dead)
    with pytest.raises(RoleLostError, match="the learner died"):
        call.poll(1.2)


def test_late_answer_is_asked_for_again_each_time_after_twice_as_long(role):
    """Ray says only after seconds that a call was lost."""
    call = asked(role)
    moments = []
    for tick in range(0, 400):
        before = len(role.calls)
        assert call.poll(tick / 100) is None
        if len(role.calls) > before:
            moments.append(tick / 100)
    assert moments == [0.0, FIRST_PATIENCE_S, 3 * FIRST_PATIENCE_S, 7 * FIRST_PATIENCE_S]
    role.calls[2].answer(7)
    role.calls[3].answer(7)
    assert call.poll(4.0) == 7
    assert call.poll(4.0) is None  # the other calls are forgotten
    assert len(role.calls) == 5
    for later_s, n_calls in ((FIRST_PATIENCE_S, 5), (MOST_PATIENCE_S, 6)):  # it has become slow
        assert call.poll(4.0 + later_s) is None
        assert len(role.calls) == n_calls


def test_role_that_answers_soon_is_asked_again_soon(role):
    call = asked(role)
    for number in range(20):
        call.poll(float(number))
        role.calls[-1].answer(number)
        assert call.poll(number + 0.01) == number
    call.poll(20.0)
    assert call.poll(20.0 + LEAST_PATIENCE_S) is None
    assert len(role.calls) == 21
    assert call.poll(20.02 + LEAST_PATIENCE_S) is None
    assert len(role.calls) == 22


def test_call_that_is_lost_while_another_is_under_way_is_not_made_a_third_time(role, ray):
    call = asked(role)
    call.poll(0.0)
    call.poll(FIRST_PATIENCE_S)
    role.calls[0].answer(ray.lost)
    assert call.poll(FIRST_PATIENCE_S + 0.1) is None
    assert len(role.calls) == 2
    role.calls[1].answer(9)
    assert call.poll(FIRST_PATIENCE_S + 0.2) == 9
