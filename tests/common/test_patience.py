"""The time to wait against sums written down by hand (RFC 6298, section 2)."""

from __future__ import annotations

import pytest

from qfleet.common.patience import Patience


def after(*took_s, least_s=0.001, most_s=60.0):
    patience = Patience(least_s, 7.0, most_s)
    for seconds in took_s:
        patience.answered(seconds)
    return patience.seconds


@pytest.mark.parametrize(
    ("took_s", "expected_s"),
    [
        ((), 7.0),
        ((8.0,), 8.0 + 4 * 4.0),
        ((8.0, 16.0), 9.0 + 4 * 5.0),  # deviation 4 + (8 - 4) / 4, mean 8 + 8 / 8
        ((8.0, 16.0, 1.0), 8.0 + 4 * 5.75),  # deviation 5 + (8 - 5) / 4, mean 9 - 8 / 8
        ((0.0,), 0.001),
    ],
)
def test_seconds_are_the_smoothed_time_and_four_deviations(took_s, expected_s):
    assert after(*took_s) == pytest.approx(expected_s, rel=1e-12)


def test_answers_that_always_take_the_same_are_waited_for_a_little_longer():
    assert after(*[0.2] * 100, least_s=0.02) == pytest.approx(0.22, rel=1e-9)


def test_seconds_stay_within_the_bounds():
    assert after(3.0, most_s=0.5) == 0.5
    assert after(*[1e-4] * 100, least_s=0.02, most_s=0.5) == pytest.approx(0.0201)


def test_one_slow_answer_is_enough_to_wait_for_the_next_of_its_kind():
    assert after(*[0.003] * 100) < 0.02
    assert after(*[0.003] * 100, 0.3) > 0.3


def test_a_tenth_of_lost_answers_does_not_teach_to_wait_ever_longer():
    """Each lost one is heard of after the patience of its time; then two milliseconds more."""
    patience, seen = Patience(0.02, 0.5, 2.0), []
    for number in range(1000):
        patience.answered(patience.seconds + 0.002 if number % 10 == 0 else 0.002)
        seen.append(patience.seconds)
    assert max(seen[500:]) < 0.1
