"""What a run directory tells a report: outcome, curves and videos of one run.

Called by the report and the study; reads nothing but the run directory's own files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qfleet.common.errors import ConfigError
from qfleet.common.types import Array
from qfleet.run_files.find_runs import CONFIG_FILE, SUMMARY_FILE
from qfleet.run_files.metrics import (
    EVAL_RETURN_MEAN,
    LEARNER_GRAD_NORM,
    LEARNER_LOSS,
    LEARNER_Q_MEAN,
    read_metrics,
    read_monitor,
)
from qfleet.settings.yaml_settings import load_plain

DIVERGED_EXIT_CODE = 4
TRACES = (LEARNER_Q_MEAN, LEARNER_LOSS, LEARNER_GRAD_NORM)
FILM_TYPES = {
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
SEED_KEYS = ("seed", "run.dir")
"""What may differ between two runs of one arm."""


@dataclass(frozen=True)
class Reading:
    """One run, finished or not."""

    path: Path
    config: dict[str, Any]
    """The resolved configuration, by dotted key."""
    summary: dict[str, Any]
    """As summary.json has it; empty while the run goes on."""
    eval_learner_steps: Array
    """float64 [N], growing; the places of the evaluations."""
    eval_env_steps: Array
    eval_returns: Array
    """float64 [N], the greedy evaluations' means."""
    episode_lengths: Array
    """float64 [M], training episodes in order."""
    traces: dict[str, tuple[Array, Array]]
    """Per name in `TRACES`: learner steps and values, float64 [T] each."""

    @property
    def seed(self) -> int:
        """The root seed."""
        return int(self.config["seed"])

    @property
    def is_complete(self) -> bool:
        """Whether it came to an end that counts: by its budget, solved, or diverged."""
        return self.has_diverged or self.summary.get("status") in ("finished", "solved")

    @property
    def has_diverged(self) -> bool:
        """Whether losses or gradients became infinite: a finding, no failure."""
        return bool(self.summary.get("exit_code") == DIVERGED_EXIT_CODE)

    @property
    def failure(self) -> str | None:
        """Why the run tells nothing; None for one that is complete or goes on."""
        if not self.summary or self.is_complete:
            return None
        reason = self.summary.get("stop_reason") or self.summary.get("status")
        return f"exit {self.summary.get('exit_code')}: {reason}"

    @property
    def learner_steps(self) -> int:
        """Updates made."""
        return int(self.summary.get("learner_steps") or 0)

    @property
    def score(self) -> float | None:
        """Mean return over fresh greedy episodes of the best parameters."""
        value = self.summary.get("eval_return_mean")
        return None if value is None else float(value)

    def video(self) -> Path | None:
        """The newest film of the run."""
        films = [
            file for file in sorted((self.path / "videos").glob("*")) if file.suffix in FILM_TYPES
        ]
        return films[-1] if films else None


def read_run(path: Path) -> Reading:
    """One run directory.

    Raises:
        ConfigError: when it is none, or its files cannot be read.
    """
    file = path / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{path} is no run directory: it holds no {CONFIG_FILE}")
    try:
        config = flatten(load_plain(file.read_text(), str(file)))
        summary_file = path / SUMMARY_FILE
        summary = json.loads(summary_file.read_text()) if summary_file.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    rows = read_metrics(path)
    evaluations = [row for row in rows if row.get(EVAL_RETURN_MEAN) is not None]
    places = _column(evaluations, "learner_steps")
    order = np.argsort(places, kind="stable")
    return Reading(
        path=path,
        config=config,
        summary=summary,
        eval_learner_steps=places[order],
        eval_env_steps=_column(evaluations, "env_steps")[order],
        eval_returns=_column(evaluations, EVAL_RETURN_MEAN)[order],
        episode_lengths=np.array([length for _, length, _ in read_monitor(path)], np.float64),
        traces={name: _trace(rows, name) for name in TRACES},
    )


def _trace(rows: list[dict[str, Any]], name: str) -> tuple[Array, Array]:
    there = [row for row in rows if row.get(name) is not None]
    return _column(there, "learner_steps"), _column(there, name)


def _column(rows: list[dict[str, Any]], name: str) -> Array:
    return np.array([row[name] for row in rows], dtype=np.float64)


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Nested sections as dotted keys; values stay."""
    flat: dict[str, Any] = {}
    for section, content in config.items():
        if isinstance(content, dict) and section not in ("kwargs",):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            flat[section] = content
    return flat


def differing_keys(runs: list[Reading]) -> dict[str, list[Any]]:
    """Keys that are not the same in all runs, seeds and directories left out; values in order."""
    keys = sorted({key for run in runs for key in run.config} - set(SEED_KEYS))
    columns = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in columns.items() if any(v != values[0] for v in values)}
