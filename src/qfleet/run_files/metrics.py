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
from typing import IO, Any

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
    ROLLOUT_EPSILON: "mean exploration rate of those episodes",
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

    When `write` returns, its row and the episodes before it are with the operating system: a killed
    process loses at most the episodes since, and the next writer cuts off a half-written line.

    Args:
        run_dir: Directory of the files.
        env_id: Named in monitor.csv.
        t_start_s: Seconds since the epoch when this process began to train.
        tensorboard: Whether to write event files as well.
        resumed_at_env_steps: Tells TensorBoard to forget points beyond the checkpoint resumed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        env_id: str,
        t_start_s: float,
        tensorboard: bool = True,
        resumed_at_env_steps: int | None = None,
    ) -> None:
        self._t_start_s = t_start_s
        self._rows = _open_to_append(run_dir / METRICS_FILE)
        self._episodes = _open_to_append(run_dir / MONITOR_FILE)
        if self._episodes.tell() == 0:
            header = json.dumps({"t_start": t_start_s, "env_id": env_id})
            self._episodes.write(f"#{header}\nr,l,t\n")
            self._episodes.flush()
        self._events = _EventFile(run_dir) if tensorboard else None
        if self._events is not None and resumed_at_env_steps is not None:
            self._events.forget_beyond(resumed_at_env_steps, t_start_s)

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
        self._rows.write(json.dumps(row, allow_nan=False) + "\n")
        self._rows.flush()
        self._episodes.flush()
        if self._events is not None:
            finite |= {TIME_WALL_S: wall_s, TIME_LEARNER_STEPS: float(learner_steps)}
            self._events.add(finite, env_steps, self._t_start_s + wall_s)

    def write_episode(self, episode_return: float, length_env_steps: int, wall_s: float) -> None:
        """Append one training episode to monitor.csv; it is flushed with the next row."""
        self._episodes.write(f"{float(episode_return)!r},{length_env_steps},{wall_s:.6f}\n")

    def flush(self) -> None:
        """Hand everything to the operating system; `write` does so for its own row."""
        self._rows.flush()
        self._episodes.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close; calling it twice does no harm."""
        if self._rows.closed:
            return
        self.flush()
        self._rows.close()
        self._episodes.close()
        if self._events is not None:
            self._events.close()


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


def _open_to_append(path: Path) -> IO[str]:
    """Open for appending, after cutting off a line that a killed process left unfinished."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)
    return open(path, "a", encoding="utf-8")


class _EventFile:
    """TensorBoard's scalars, written without torch or TensorFlow.

    Opened with the first point: importing TensorBoard takes a sixth of a second, which a run that
    starts Ray has to spare by then.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: Any = None

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._opened = EventFileWriter(str(self._directory))
        return self._opened

    def add(self, values: Mapping[str, float], env_steps: int, time_s: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._writer.add_event(Event(wall_time=time_s, step=env_steps, summary=summary))
        self._writer.flush()

    def forget_beyond(self, env_steps: int, time_s: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        log = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time_s, step=env_steps + 1, session_log=log))

    def flush(self) -> None:
        if self._opened is not None:
            self._opened.flush()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
