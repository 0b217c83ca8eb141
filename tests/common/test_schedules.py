import math

import numpy as np
import pytest

from qfleet.common import schedules


@pytest.mark.parametrize(
    ("n_slots", "expected"),
    [
        (1, [0.4]),
        (2, [0.4, 0.4**8]),
        (8, [0.4 ** (1 + i) for i in range(8)]),
    ],
)
def test_epsilon_ladder_follows_the_paper(n_slots, expected):
    ladder = schedules.epsilon_ladder(n_slots, 0.4, 7.0)

    assert ladder.dtype == np.float64
    np.testing.assert_allclose(ladder, expected, rtol=1e-13)


def test_epsilon_ladder_exponent_zero_is_flat():
    assert schedules.epsilon_ladder(3, 0.25, 0.0).tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("step", "expected"),
    [(-5, 1.0), (0, 1.0), (25, 0.6 + 0.4 * 0.5**0.5), (50, 0.6), (100, 0.2), (10**9, 0.2)],
)
def test_cosine_falls_along_half_a_wave_and_stays(step, expected):
    assert schedules.cosine(step, 1.0, 0.2, 100) == pytest.approx(expected, abs=1e-15)


def test_epsilon_ladder_without_slots_raises():
    with pytest.raises(ValueError, match="n_slots must be at least 1, got 0"):
        schedules.epsilon_ladder(0, 0.4, 7.0)


@pytest.mark.parametrize(
    ("step", "expected"), [(-5, 1.0), (0, 1.0), (25, 0.8), (50, 0.6), (100, 0.2), (10**9, 0.2)]
)
def test_linear_falls_in_a_straight_line_and_stays(step, expected):
    assert schedules.linear(step, 1.0, 0.2, 100) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.05), (0.4, 1.0), (0.3, 0.1), (1.0, 0.01)])
def test_linear_ends_exactly_at_its_end(start, end):
    assert schedules.linear(0, start, end, 7) == start
    assert schedules.linear(7, start, end, 7) == end


@pytest.mark.parametrize("step", [0, 1, 100, 1_000])
def test_exponential_has_its_decay_steps_as_time_constant(step):
    expected = 0.05 + 0.95 * math.exp(-step / 100)

    assert schedules.exponential(step, 1.0, 0.05, 100) == pytest.approx(expected, rel=1e-14)


def test_exponential_before_step_zero_is_start():
    assert schedules.exponential(-1_000, 1.0, 0.05, 100) == 1.0
