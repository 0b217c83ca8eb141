"""summary.json, and the last block that `train` prints.

Written by `train` on every exit; read by `status`, by tests and by users' scripts, so its field
names are a promise.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from qfleet.common.errors import ConfigError
from qfleet.run.phases import EVALUATION, TRAINING
from qfleet.run_files.error_texts import ERRORS_DIRECTORY
from qfleet.run_files.run_directory import (
    CONFIG_FILE,
    LEARNING_CURVE_FILE,
    RUNS,
    SUMMARY_FILE,
    replace_file,
    shorten,
)
from qfleet.session.bottleneck import ACTOR_STAGES

_LISTED_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "monitor.csv",
    "checkpoints",
    "videos",
    ERRORS_DIRECTORY,
    LEARNING_CURVE_FILE,
    SUMMARY_FILE,
)


class Accounting(BaseModel):
    """Where every transition went: `produced` is the sum of the other six."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    produced: int = 0
    resident: int = 0
    evicted: int = 0
    rejected: int = 0
    dropped: int = 0
    lost: int = 0
    in_flight: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether no transition is missing or counted twice."""
        parts = (self.resident, self.evicted, self.rejected, self.dropped, self.lost)
        return self.produced == sum(parts) + self.in_flight


class RunSummary(BaseModel):
    """The outcome of a run, over all its resumed parts; None where something was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["solved", "finished", "stopped", "failed"]
    exit_code: int
    resumable: bool
    env_id: str
    preset: str
    runtime: str
    schedule: str
    seed: int
    solved: bool
    solved_at_env_step: int | None
    eval_return_mean: float | None
    eval_return_std: float | None
    eval_episodes: int
    env_steps: int
    learner_steps: int
    target_syncs: int
    actors: int
    replay_shards: int
    startup_s: float
    train_s: float
    eval_s: float
    wall_s: float
    env_steps_per_s: float
    learner_steps_per_s: float
    samples_per_insert: float | None
    limited_by: str
    params_version: int
    params_sha256: str
    accounting: Accounting
    device: str
    learner_path: str
    versions: dict[str, str]

    run_id: str | None = None
    run_dir: str | None = None
    resume_kind: str | None = None
    """`exact` or `new episodes` when the run was resumed."""
    stop_reason: str | None = None
    """What ended it, in words: a budget, a signal, an error."""
    role_restarts: int = 0
    """How often all roles were started again from the last cut."""
    incidents: list[str] = []
    """What went wrong and was dealt with, in the order it was seen."""
    phases_s: dict[str, float] | None = None
    """Seconds of each phase of this process, in the order in which they began; their sum is
    `wall_s`. None in files of older versions."""


def write_summary(summary: RunSummary, run_dir: Path) -> Path:
    """Write summary.json whole or not at all; a number that is not finite becomes null."""
    path = run_dir / SUMMARY_FILE
    replace_file(path, summary.model_dump_json(indent=2) + "\n")
    return path


def read_summary(run_dir: Path) -> RunSummary | None:
    """The summary in `run_dir`, None when the run has not ended yet.

    Raises:
        ConfigError: when the file is not a summary that this version can read.
    """
    path = run_dir / SUMMARY_FILE
    if not path.is_file():
        return None
    try:
        return RunSummary.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}; remove it to go on") from error


def final_block(summary: RunSummary, run_dir: Path) -> str:
    """The last lines of `train`: outcome, times, steps, limits, files and what to type next."""
    run_dir = shorten(run_dir)
    rows = [
        ("time", _times(summary)),
        ("steps", _steps(summary)),
        ("limited by", summary.limited_by),
        ("best", _best(summary, run_dir)),
        ("parameters", f"params_sha256 {summary.params_sha256[:12] or 'unknown'} at the end"),
        ("files", _files(run_dir)),
        *_advice(summary, run_dir),
    ]
    lines = [_outcome(summary), *(f"  {name:<11}{text}" for name, text in rows)]
    return "\n".join([*lines, "Next:", *(f"  {line}" for line in _next(summary, run_dir))])


def _outcome(summary: RunSummary) -> str:
    score = _score(summary)
    if summary.solved:
        at = summary.solved_at_env_step
        where = "" if at is None else f", at env step {at:,}"
        return f"Solved {summary.env_id}: {score}{where}"
    verb = {"failed": "Failed on", "stopped": "Stopped"}.get(summary.status, "Finished")
    reason = f" ({summary.stop_reason})" if summary.stop_reason else ""
    return f"{verb} {summary.env_id}, not solved{reason}: best so far {score}"


def _score(summary: RunSummary) -> str:
    if summary.eval_return_mean is None:
        return "unknown, nothing was evaluated"
    spread = "" if summary.eval_return_std is None else f" ± {summary.eval_return_std:.1f}"
    return (
        f"return {summary.eval_return_mean:.1f}{spread} "
        f"over {summary.eval_episodes} fresh greedy episodes"
    )


def _times(summary: RunSummary) -> str:
    phases = summary.phases_s or {
        "startup": summary.startup_s,
        TRAINING: summary.train_s,
        EVALUATION: summary.eval_s,
    }
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    # An asynchronous run evaluates while it trains: no phase of its own.
    beside = f"; evaluation {summary.eval_s:.1f} meanwhile" if EVALUATION not in phases else ""
    return f"{summary.wall_s:.1f} s ({parts}{beside})"


def _steps(summary: RunSummary) -> str:
    per_insert = summary.samples_per_insert
    ratio = "" if per_insert is None else f", {per_insert:.1f} samples per insert"
    return (
        f"{summary.env_steps:,} env ({summary.env_steps_per_s:,.0f}/s), "
        f"{summary.learner_steps:,} learner ({summary.learner_steps_per_s:,.0f}/s), "
        f"{summary.target_syncs:,} target syncs{ratio}"
    )


def _best(summary: RunSummary, run_dir: Path) -> str:
    if not (run_dir / "best").is_dir():
        return "none: no evaluation ended"
    return str(run_dir / "best")


def _files(run_dir: Path) -> str:
    present = [name for name in _LISTED_FILES if (run_dir / name).exists()]
    return f"{run_dir}: {', '.join(present)}"


def _advice(summary: RunSummary, run_dir: Path) -> list[tuple[str, str]]:
    """What to try when a run ended unsolved."""
    if summary.solved or summary.status == "failed":
        return []
    more = f"more time ({_larger_budget(summary, run_dir).strip()})"
    seed = f"another seed (--seed {summary.seed + 1})"
    tries = [more, seed]
    if summary.limited_by in ACTOR_STAGES:
        tries.append(f"more actors (--actors.count {summary.actors + 1}): the learner waited")
    return [("try", "; ".join(tries))]


def _next(summary: RunSummary, run_dir: Path) -> list[str]:
    """Commands with the real path; how to resume stands last."""
    run = shlex.quote(str(run_dir))
    # All default runs in one view; the neighbours of a directory elsewhere may be anything.
    logs = shlex.quote(str(run_dir.parent)) if run_dir.parent.name == RUNS.name else run
    lines = []
    if (run_dir / "best").is_dir():
        lines += [f"qfleet play {run}", f"qfleet eval {run}"]
    lines.append(f"tensorboard --logdir {logs}")
    if summary.resumable:
        ended = summary.status in ("solved", "finished") and summary.exit_code == 0
        budget = _larger_budget(summary, run_dir) if ended else ""
        lines.append(f"qfleet train --resume {run}{budget}")
    return lines


def _larger_budget(summary: RunSummary, run_dir: Path) -> str:
    """The flags with which a run that ended by itself goes on: twice the budget that ended it."""
    goal = " --eval.stop_when_solved false" if summary.solved else ""
    config = run_dir / CONFIG_FILE
    run = (yaml.safe_load(config.read_text()) or {}).get("run", {}) if config.is_file() else {}
    spent = run.get(summary.stop_reason)
    if spent is not None:
        return f" --run.{summary.stop_reason} {2 * spent}{goal}"
    if summary.solved:
        return goal
    return f" --run.max_env_steps {max(2 * summary.env_steps, 1000)}"
