"""Figures over seeds, by hand and beside SciPy's own bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qfleet.studies.statistics import (
    estimate,
    first_reaching,
    interquartile_mean,
    intervals,
    mean_over_training,
    on_grid,
)


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])) == 3.5
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # too few to leave any out


def test_interval_is_the_percentile_bootstrap_of_the_interquartile_mean() -> None:
    values = np.random.default_rng(0).normal(100.0, 15.0, 12)

    found = estimate(values)

    theirs = stats.bootstrap(
        (values,),
        lambda sample, axis: stats.trim_mean(sample, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(stats.trim_mean(values, 0.25))
    assert found.low == pytest.approx(theirs.low, abs=1.0)  # of an interval some 14 wide
    assert found.high == pytest.approx(theirs.high, abs=1.0)
    assert found.n == 12


def test_interval_of_one_seed_is_its_value_and_the_same_runs_give_the_same_interval() -> None:
    assert estimate(np.array([7.0])) == (7.0, 7.0, 7.0, 1)
    values = np.arange(5.0)
    assert estimate(values) == estimate(values)


def test_intervals_of_a_curve_are_those_of_its_columns() -> None:
    values = np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])

    mean, low, high = intervals(values)

    assert mean.tolist() == [2.0, 10.0]
    assert low[1] == high[1] == 10.0
    assert 0.0 <= low[0] < 2.0 < high[0] <= 4.0


def test_on_grid_takes_the_newest_value_at_or_before() -> None:
    places, values = np.array([10.0, 20.0]), np.array([1.0, 2.0])

    assert on_grid(places, values, np.array([0.0, 10.0, 15.0, 20.0, 99.0])).tolist() == [
        1.0,
        1.0,
        1.0,
        2.0,
        2.0,
    ]


def test_mean_over_training_is_the_area_of_the_steps() -> None:
    places, values = np.array([10.0, 30.0]), np.array([100.0, 500.0])

    # 100 from the beginning to 30, 500 from there to 50.
    assert mean_over_training(places, values, 50.0) == pytest.approx((3000 + 10_000) / 50)
    # A run that ended before the others keeps its last value.
    assert mean_over_training(places, values, 130.0) == pytest.approx((3000 + 50_000) / 130)


def test_first_reaching() -> None:
    places, values = np.array([10.0, 20.0, 30.0]), np.array([1.0, 475.0, 500.0])

    assert first_reaching(places, values, 475.0) == 20.0
    assert first_reaching(places, values, 501.0) is None
