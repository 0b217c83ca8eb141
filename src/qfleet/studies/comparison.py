"""Arms side by side: every figure of a report, as plain data that JSON and CSV hold too.

Called by the report; computes from readings and knows neither pages nor pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qfleet.common.types import Array
from qfleet.studies.readings import Reading, differing_keys
from qfleet.studies.statistics import (
    Estimate,
    estimate,
    first_reaching,
    intervals,
    mean_over_training,
    on_grid,
)

GRID_POINTS = 200
LONGEST_NAME = 60
"""Characters of an arm's name; more would fill the figures."""
_FIRST_KEYS = ("env.id", "preset")
_LAST_SECTIONS = ("eval.", "metrics.", "run.")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds."""

    name: str
    runs: list[Reading]

    @property
    def complete(self) -> list[Reading]:
        """Runs that came to an end that counts; the others are named, never averaged in."""
        return [run for run in self.runs if run.is_complete]

    @property
    def failed(self) -> list[Reading]:
        """Runs that ended without telling anything."""
        return [run for run in self.runs if run.failure is not None]

    @property
    def diverged(self) -> list[Reading]:
        """Runs whose numbers became infinite."""
        return [run for run in self.runs if run.has_diverged]


@dataclass(frozen=True)
class Curve:
    """An arm's evaluations over updates: interquartile mean and interval, float64 [G] each."""

    learner_steps: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Figures:
    """What one arm came to; None where no run has it."""

    arm: str
    seeds: list[int]
    n_complete: int
    n_failed: int
    n_diverged: int
    n_solved: int
    score: Estimate | None
    """Mean return over fresh greedy episodes of the best parameters."""
    over_training: Estimate | None
    """Area under the evaluation curve, as a mean return from the first update to the budget."""
    reached: int
    """Seeds of which an evaluation reached the threshold."""
    learner_steps_to_threshold: float | None
    """Median over those."""
    env_steps_to_threshold: float | None
    learner_steps: float | None
    """Median updates made."""
    env_steps: float | None
    train_s: float | None
    curve: Curve | None = field(default=None, repr=False)

    def as_row(self) -> dict[str, Any]:
        """JSON-able, without the curve."""
        row: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Estimate):
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            elif name != "curve":
                row[name] = value
        return row


def group_by_configuration(runs: list[Reading]) -> list[Arm]:
    """Runs with the same configuration but for seed and directory are one arm.

    It is named by the keys in which the arms differ; where these are many, by the fewest that tell
    them apart.
    """
    differing = differing_keys(runs)
    groups: dict[tuple[str, ...], list[Reading]] = {}
    for index, run in enumerate(runs):
        values = tuple(_short(column[index]) for column in differing.values())
        groups.setdefault(values, []).append(run)
    names = _names(list(differing), list(groups)) or [str(runs[0].config.get("preset"))]
    return [
        Arm(name, sorted(group, key=lambda run: run.seed))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _names(keys: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    """One for each row of values; none without keys."""

    def named(chosen: Sequence[str], rest: str = "") -> list[str]:
        places = [keys.index(key) for key in chosen]
        return [", ".join(f"{keys[i]} {row[i]}" for i in places) + rest for row in rows]

    if not keys:
        return []
    whole = named(keys)
    if max(map(len, whole)) <= LONGEST_NAME:
        return whole
    # What a run is of comes first, what only watches or ends it last.
    order = sorted(keys, key=lambda key: (key not in _FIRST_KEYS, key.startswith(_LAST_SECTIONS)))
    for n_keys in (1, 2, 3):
        for chosen in itertools.combinations(order, n_keys):
            names = named(chosen, ", …")
            if len(set(names)) == len(rows):
                return names
    return whole


def _short(value: Any) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    )


def gain(arm: Arm, base: Arm, end: float) -> Estimate | None:
    """How much more than `base` an arm returned over training, seed against the same seed.

    None when there is no seed that both came to an evaluation with.
    """
    ours, theirs = (_areas(each.complete, end) for each in (arm, base))
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return estimate(np.array(differences)) if differences else None


def _areas(runs: list[Reading], end: float) -> dict[int, float]:
    """`mean_over_training` by seed, of the runs that were evaluated."""
    return {
        run.seed: mean_over_training(run.eval_learner_steps, run.eval_returns, end)
        for run in runs
        if len(run.eval_returns)
    }


def budget_learner_steps(arms: list[Arm]) -> float:
    """Where all curves end: the most updates that any complete run made."""
    return float(max((run.learner_steps for arm in arms for run in arm.complete), default=0))


def compare(arms: list[Arm], threshold: float | None) -> list[Figures]:
    """The figures of every arm, in their order."""
    end = budget_learner_steps(arms)
    return [_figures(arm, threshold, end) for arm in arms]


def _figures(arm: Arm, threshold: float | None, end: float) -> Figures:
    runs = arm.complete
    evaluated = [run for run in runs if len(run.eval_returns)]
    scores = [run.score for run in runs if run.score is not None]
    reached = []
    if threshold is not None:
        reached = [
            run for run in evaluated if float(run.eval_returns.max(initial=-np.inf)) >= threshold
        ]
    areas = list(_areas(runs, end).values())
    return Figures(
        arm=arm.name,
        seeds=[run.seed for run in arm.runs],
        n_complete=len(runs),
        n_failed=len(arm.failed),
        n_diverged=len(arm.diverged),
        n_solved=sum(bool(run.summary.get("solved")) for run in runs),
        score=estimate(np.array(scores)) if scores else None,
        over_training=estimate(np.array(areas)) if areas else None,
        reached=len(reached),
        learner_steps_to_threshold=_median_first(reached, "eval_learner_steps", threshold),
        env_steps_to_threshold=_median_first(reached, "eval_env_steps", threshold),
        learner_steps=_median(runs, "learner_steps"),
        env_steps=_median(runs, "env_steps"),
        train_s=_median(runs, "train_s"),
        curve=_curve(evaluated, end),
    )


def _median_first(runs: list[Reading], axis: str, threshold: float | None) -> float | None:
    if threshold is None or not runs:
        return None
    places = [first_reaching(getattr(run, axis), run.eval_returns, threshold) for run in runs]
    return float(np.median([place for place in places if place is not None]))


def _median(runs: list[Reading], name: str) -> float | None:
    values = [float(run.summary[name]) for run in runs if run.summary.get(name) is not None]
    return float(np.median(values)) if values else None


def _curve(runs: list[Reading], end: float) -> Curve | None:
    if not runs or end <= 0:
        return None
    grid = np.linspace(0.0, end, GRID_POINTS)
    values = np.stack([on_grid(run.eval_learner_steps, run.eval_returns, grid) for run in runs])
    return Curve(grid, *intervals(values))
