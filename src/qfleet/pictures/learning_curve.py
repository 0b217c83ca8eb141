"""learning_curve.png: training and evaluation returns over the fleet's env steps.

Called at the end of `train`; reads nothing but the run directory's own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qfleet.common.types import Array
from qfleet.run_files.durable import TEMPORARY_PREFIX
from qfleet.run_files.find_runs import CONFIG_FILE
from qfleet.run_files.metrics import EVAL_RETURN_MEAN, read_metrics, read_monitor
from qfleet.run_files.run_directory import LEARNING_CURVE_FILE
from qfleet.settings.yaml_settings import load_plain

MAX_POINTS = 5000
"""Scattered points beyond this are thinned evenly; the mean is taken over all episodes."""


def plot_learning_curve(run_dir: Path, threshold: float | None = None) -> Path:
    """Draw the curve of `run_dir` and return the picture's path.

    Args:
        run_dir: A run directory, finished or not.
        threshold: Return that counts as solved; None looks it up in the run's configuration.
    """
    # The object interface: `pyplot` would choose a window system and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = _read_config(run_dir)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_training(axes, *training_points(run_dir))
    _draw_evaluation(axes, *evaluation_points(run_dir))
    threshold = _configured_threshold(config) if threshold is None else threshold
    if threshold is not None:
        axes.axhline(
            threshold, color="tab:green", ls="--", lw=1.2, label=f"solved at {threshold:g}"
        )
    axes.set_xlabel("env steps of the whole fleet")
    axes.set_ylabel("return of an episode")
    axes.set_title(_title(config, run_dir))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        # Below the axes: within them it hid the evaluation that solved.
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    else:
        axes.text(0.5, 0.5, "no episode has ended yet", ha="center", transform=axes.transAxes)
    path, temporary = run_dir / LEARNING_CURVE_FILE, run_dir / f"{TEMPORARY_PREFIX}curve.png"
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    return path


def training_points(run_dir: Path) -> tuple[Array, Array]:
    """`(env_steps, returns)` of all training episodes, float64 [n] each.

    An episode's place is the sum of the lengths up to it: episodes still running are not counted,
    so it lags the fleet's count by less than one episode per sub-environment. Episodes that a
    resume from an older checkpoint has undone are left out.
    """
    episodes = np.array(read_monitor(run_dir), dtype=np.float64).reshape(-1, 3)
    episodes = episodes[_not_undone(episodes[:, 2])]
    return np.cumsum(episodes[:, 1]), episodes[:, 0]


def evaluation_points(run_dir: Path) -> tuple[Array, Array]:
    """`(env_steps, mean returns)` of the evaluations, float64 [n] each.

    Rows that a resume from an older checkpoint has undone are left out. A row at the env step of
    an evaluation undoes nothing: where rounds are played in lockstep, the last one always has it.
    """
    rows = read_metrics(run_dir)
    steps = np.array([row["env_steps"] for row in rows], dtype=np.float64)
    points: dict[tuple[int, int], tuple[float, float]] = {}
    for row, is_kept in zip(rows, _not_undone(steps), strict=True):
        value = row.get(EVAL_RETURN_MEAN)
        if is_kept and value is not None:
            # Evaluated again after a resume from the cut right behind it: the newer one counts.
            place = (row["env_steps"], row["learner_steps"])
            points[place] = (float(row["env_steps"]), float(value))
    array = np.array(list(points.values()), dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _not_undone(places: Array) -> Array:
    """Mask, bool [n]: no later row stands at a smaller place, as after a resume does."""
    later = np.append(places[1:], np.inf)
    return np.asarray(places <= np.minimum.accumulate(later[::-1])[::-1], dtype=np.bool_)


def rolling_mean(values: Array, window: int) -> Array:
    """Mean of the last `window` values at each place, fewer at the start; float64 [n]."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _draw_training(axes: Any, steps: Array, returns: Array) -> None:
    if not len(returns):
        return
    window = min(100, max(5, len(returns) // 20))
    stride = -(-len(returns) // MAX_POINTS)
    axes.plot(
        steps[::stride],
        returns[::stride],
        ".",
        color="tab:blue",
        alpha=0.35,
        ms=5,
        mew=0,
        label="training episodes",
    )
    mean = rolling_mean(returns, window)
    axes.plot(steps, mean, color="tab:blue", lw=1.8, label=f"their mean over {window}")


def _draw_evaluation(axes: Any, steps: Array, returns: Array) -> None:
    if len(returns):
        marker = "o" if len(returns) <= 100 else None
        axes.plot(
            steps,
            returns,
            marker=marker,
            color="tab:orange",
            lw=1.8,
            ms=5,
            label="greedy evaluation",
        )


def _title(config: dict[str, Any], run_dir: Path) -> str:
    env_id = config.get("env", {}).get("id")
    if env_id is None:
        return run_dir.name
    return f"{env_id}, preset {config.get('preset')}, seed {config.get('seed')}"


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG_FILE
    return load_plain(path.read_text(), str(path)) if path.is_file() else {}


def _configured_threshold(config: dict[str, Any]) -> float | None:
    wanted = config.get("eval", {}).get("solved_at_return", "auto")
    env_id = config.get("env", {}).get("id")
    if isinstance(wanted, int | float):
        return float(wanted)
    if wanted is None or env_id is None or config.get("env", {}).get("factory"):
        return None
    import gymnasium

    try:
        return gymnasium.spec(env_id).reward_threshold
    except gymnasium.error.Error:
        return None  # registered by a module of the user's that this process has not imported
