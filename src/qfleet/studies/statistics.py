"""What a handful of seeds says: interquartile means with bootstrap intervals, and times to a score.

Pure; called by the readings and the report. Seeds are the only strata: a study has one environment.

Source: Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice), interquartile mean
and stratified bootstrap intervals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qfleet.common.types import Array

CONFIDENCE = 0.95
RESAMPLES = 2_000
TRIMMED = 0.25
"""Of the values at each end; with fewer than four seeds nothing is left out: that is the mean."""


class Estimate(NamedTuple):
    """A figure over seeds and the interval around it."""

    value: float
    low: float
    high: float
    n: int
    """Seeds."""


def interquartile_mean(values: Array, axis: int = 0) -> Array:
    """Mean of the middle half along `axis`, float64."""
    from scipy import stats

    return np.asarray(stats.trim_mean(values, TRIMMED, axis=axis), dtype=np.float64)


def intervals(values: Array, seed: int = 0) -> tuple[Array, Array, Array]:
    """Interquartile mean over seeds and its percentile bootstrap interval, for each column.

    Args:
        values: float64 [S, N]: one row per seed.
        seed: Of the resampling, so that a report of the same runs is the same report.

    Returns:
        (mean, low, high), float64 [N] each; with one seed all three are its values.
    """
    means = interquartile_mean(values)
    if len(values) < 2:
        return means, means, means
    from scipy import stats

    # All columns of a resample are of the same seeds. With one environment there is one stratum,
    # so that SciPy's plain bootstrap is the stratified one.
    found = stats.bootstrap(
        (values,),
        interquartile_mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        axis=0,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return means, np.asarray(found.low), np.asarray(found.high)


def estimate(values: Array, seed: int = 0) -> Estimate:
    """`intervals` of one figure per seed, float64 [S]."""
    mean, low, high = intervals(np.asarray(values, dtype=np.float64)[:, None], seed)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), len(values))


def on_grid(places: Array, values: Array, grid: Array) -> Array:
    """The newest value at or before each place of `grid`; before the first, the first.

    Args:
        places: float64 [N], growing.
        values: float64 [N], N > 0.
        grid: float64 [G].
    """
    newest = np.searchsorted(places, grid, side="right") - 1
    return np.asarray(values[np.maximum(newest, 0)], dtype=np.float64)


def mean_over_training(places: Array, values: Array, end: float) -> float:
    """Area under the step curve from 0 to `end`, divided by `end`."""
    edges = np.append(np.minimum(places, end), end)
    edges[0] = 0.0
    return float(np.sum(values * np.diff(edges)) / end)


def first_reaching(places: Array, values: Array, threshold: float) -> float | None:
    """The first place at which the value is at least `threshold`; None when it never is."""
    reached = np.flatnonzero(values >= threshold)
    return float(places[reached[0]]) if len(reached) else None
