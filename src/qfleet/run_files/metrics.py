"""Metric names with their units, and the writer of metrics.jsonl, TensorBoard and monitor.csv.

Called by the driver once per metrics period and once per episode; read back by `qfleet status` and
the learning curve. The time is passed in: rows carry seconds since training began.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfleet.run_files.durable import AppendedFile, DiskWatch, replace_synced
from qfleet.run_files.event_file import EventFile
from qfleet.run_files.summary import FLEET_FILE, FleetTables, write_fleet_tables

ROLLOUT_RETURN_MEAN = "rollout/return_mean"
ROLLOUT_LENGTH_MEAN = "rollout/length_mean"
ROLLOUT_EPSILON = "rollout/epsilon"
EVAL_RETURN_MEAN = "eval/return_mean"
LEARNER_LOSS = "learner/loss"
LEARNER_Q_MEAN = "learner/q_mean"
LEARNER_TD_ERROR_ABS_MEAN = "learner/td_error_abs_mean"
LEARNER_GRAD_NORM = "learner/grad_norm"
LEARNER_STEPS_PER_S = "learner/learner_steps_per_s"
ACTOR_ENV_STEPS_PER_S = "actor/env_steps_per_s"
ACTOR_PARAMS_LAG_LEARNER_STEPS = "actor/params_lag_learner_steps"
REPLAY_SIZE = "replay/size"
REPLAY_SAMPLES_PER_INSERT = "replay/samples_per_insert"
REPLAY_SAMPLE_AGE_S = "replay/sample_age_s"
TIME_WALL_S = "time/wall_s"
TIME_LEARNER_STEPS = "time/learner_steps"

METRIC_UNITS: dict[str, str] = {
    ROLLOUT_RETURN_MEAN: "mean undiscounted return of the last training episodes, ε-greedy",
    ROLLOUT_LENGTH_MEAN: "mean length of those episodes, in env steps",
    ROLLOUT_EPSILON: "exploration rate of the newest episode; with the ladder the mean over those",
    EVAL_RETURN_MEAN: "mean undiscounted return of a greedy evaluation, in the row after it only",
    LEARNER_LOSS: "mean loss per update since the previous row",
    LEARNER_Q_MEAN: "mean Q-value of the actions drawn, online network",
    LEARNER_TD_ERROR_ABS_MEAN: "mean |TD error|",
    LEARNER_GRAD_NORM: "mean global L2 norm of the gradient before clipping",
    LEARNER_STEPS_PER_S: "updates per second since the previous row",
    ACTOR_ENV_STEPS_PER_S: "env steps per second of the whole fleet since the previous row",
    ACTOR_PARAMS_LAG_LEARNER_STEPS: "age of the acting parameters, in learner steps",
    REPLAY_SIZE: "transitions stored, over all shards",
    REPLAY_SAMPLES_PER_INSERT: "transitions drawn per transition stored, over the whole run",
    REPLAY_SAMPLE_AGE_S: "mean time from storing to drawing, in seconds",
    TIME_WALL_S: "seconds since training began",
    TIME_LEARNER_STEPS: "updates since training began",
}
"""Every metric's meaning and unit; the x axis of all of them is env steps of the whole fleet."""

METRICS_FILE = "metrics.jsonl"
MONITOR_FILE = "monitor.csv"


class MetricsWriter:
    """Appends rows to the files of one run; owned by the driver, not thread-safe.

    When `write` returns, its row and the episodes before it are with the operating system, unless
    the disk has no room: `watch` says so then, and they follow when it has. A killed process loses
    at most the episodes since, and the next writer cuts off a half-written line.

    Args:
        run_dir: Directory of the files.
        env_id: Named in monitor.csv.
        t_start_s: Seconds since the epoch when this process began to train.
        tensorboard: Whether to write event files as well.
        watch: Told of writes that fail.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        env_id: str,
        t_start_s: float,
        tensorboard: bool = True,
        watch: DiskWatch | None = None,
    ) -> None:
        self._t_start_s, self._run_dir = t_start_s, run_dir
        self._watch = watch or DiskWatch()
        self._rows = _lines(run_dir / METRICS_FILE, self._watch)
        self._episodes = _lines(run_dir / MONITOR_FILE, self._watch)
        if self._episodes.is_empty:
            header = json.dumps({"t_start": t_start_s, "env_id": env_id})
            self._episodes.add(f"#{header}\nr,l,t\n".encode())
            self._episodes.flush()
        self._events = EventFile(run_dir, self._watch) if tensorboard else None

    def forget_beyond(self, env_steps: int) -> None:
        """The run went on from a cut at `env_steps`: drop the rows that it has undone.

        Episodes in monitor.csv stay, as in Stable-Baselines3's own: they were played.
        """
        self._rows.close()
        self._watch.attempt(METRICS_FILE, lambda: _drop_rows(self._run_dir, env_steps))
        self._rows = _lines(self._run_dir / METRICS_FILE, self._watch)
        if self._events is not None:
            self._events.forget_beyond(env_steps, self._t_start_s)

    def write(
        self, metrics: Mapping[str, float], *, env_steps: int, learner_steps: int, wall_s: float
    ) -> None:
        """Append one row; a value that is not finite becomes null and no point in TensorBoard."""
        row: dict[str, Any] = {
            "env_steps": env_steps,
            "learner_steps": learner_steps,
            "wall_s": round(wall_s, 6),
        }
        finite = {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        row |= {name: finite.get(name) for name in metrics}
        self._rows.add((json.dumps(row, allow_nan=False) + "\n").encode())
        if self._events is not None:
            finite |= {TIME_WALL_S: wall_s, TIME_LEARNER_STEPS: float(learner_steps)}
            self._events.add(finite, env_steps, self._t_start_s + wall_s)
        self.flush()

    def write_fleet(self, tables: FleetTables) -> None:
        """Replace fleet.json, which `qfleet status` reads while the run goes on."""
        self._watch.attempt(FLEET_FILE, lambda: write_fleet_tables(tables, self._run_dir))

    def write_episode(self, episode_return: float, length_env_steps: int, wall_s: float) -> None:
        """Append one training episode to monitor.csv; it is flushed with the next row."""
        line = f"{float(episode_return)!r},{length_env_steps},{wall_s:.6f}\n"
        self._episodes.add(line.encode())

    def flush(self) -> None:
        """Hand everything to the operating system; `write` does so for its own row."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Flush and close; calling it twice does no harm."""
        for file in self._files:
            file.close()

    @property
    def _files(self) -> list[AppendedFile | EventFile]:
        return [self._rows, self._episodes, *([] if self._events is None else [self._events])]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are complete, in order; empty when there is no file."""
    rows: list[dict[str, Any]] = []
    path = run_dir / METRICS_FILE
    if path.is_file():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # the last line may be half written
                rows.append(json.loads(line))
    return rows


def read_monitor(run_dir: Path) -> list[tuple[float, int, float]]:
    """`(return, length_env_steps, seconds)` of each training episode; empty without a file."""
    path = run_dir / MONITOR_FILE
    episodes: list[tuple[float, int, float]] = []
    if path.is_file():
        for line in path.read_text().splitlines(keepends=True)[2:]:
            if line.endswith("\n"):
                episode_return, length, wall_s = line.split(",")
                episodes.append((float(episode_return), int(length), float(wall_s)))
    return episodes


def _lines(path: Path, watch: DiskWatch) -> AppendedFile:
    """To append to, after cutting off a line that a killed process left unfinished."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)
    return AppendedFile(path, watch)


def _drop_rows(run_dir: Path, beyond_env_steps: int) -> None:
    rows = read_metrics(run_dir)
    kept = [row for row in rows if row["env_steps"] <= beyond_env_steps]
    if len(kept) < len(rows):
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        replace_synced(run_dir / METRICS_FILE, text)
