"""summary.json, and the last block that `train` prints.

Written by `train` on every exit; read by `status`, by tests and by users' scripts, so its field
names are a promise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qfleet.common.errors import ConfigError
from qfleet.run_files.durable import TEMPORARY_PREFIX, replace_synced
from qfleet.run_files.find_runs import SUMMARY_FILE

FLEET_FILE = "fleet.json"


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
    at_least: list[str] = []
    """Names of those that are lower bounds: an actor died without last words."""

    @property
    def is_balanced(self) -> bool:
        """Whether no transition is missing or counted twice."""
        parts = (self.resident, self.evicted, self.rejected, self.dropped, self.lost)
        return self.produced == sum(parts) + self.in_flight


class ShardRow(BaseModel):
    """What one replay shard has done, in transitions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inserted: int
    sampled: int
    resident: int
    held_s: float
    """Seconds for which its rate limiter held actors or learner back, in this process."""


class SlotRow(BaseModel):
    """What one actor slot has done, over all its incarnations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slot: int
    env_steps: int
    produced: int
    """Transitions: those that its shard has stored, and what its actor has not sent yet."""
    incarnation: int


class RoleRow(BaseModel):
    """What one role does at this moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    host: str
    """Empty: it is not there."""
    pid: int
    rate: float
    unit: str
    waits_for: str
    """Empty: for nobody."""


class FleetTables(BaseModel):
    """Shards in order, and the actor slots that have played; on Ray what every role does now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: list[ShardRow] = []
    slots: list[SlotRow] = []
    roles: list[RoleRow] = []


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
    shards: list[ShardRow] = []
    slots: list[SlotRow] = []
    device: str
    learner_path: str
    versions: dict[str, str]

    run_id: str | None = None
    run_dir: str | None = None
    resume_kind: str | None = None
    """`exact` or `new episodes` when the run was resumed."""
    stop_reason: str | None = None
    """What ended it: `solved`, the key of a budget, a signal, `on_evaluation`, an error's words."""
    role_restarts: int = 0
    """How often all roles were started again from the last cut."""
    incidents: list[str] = []
    """What went wrong and was dealt with, in the order it was seen."""
    failed_writes: int = 0
    """Attempts to write to the run's files or the console that failed, for want of room mostly."""
    phases_s: dict[str, float] | None = None
    """Seconds of each phase of this process, in the order in which they began; their sum is
    `wall_s`. None in files of older versions."""
    eval_seeds: Literal["fresh", "selection"] | None = None
    """`selection`: the score is over the episodes for which `best/` was chosen, biased upwards."""
    precision: str | None = None
    """What the learner computed its convolutions in, `float32` or `bfloat16`."""
    learner_path_reason: str | None = None
    """Why the learner took `learner_path`."""
    budgets: dict[str, float] = {}
    """`run.max_*` in force at the end, by name."""
    eval_cut_episodes: int = 0
    """Of `eval_episodes`, how many were cut after `max_episode_steps`."""
    max_episode_steps: int | None = None
    play: str | None = None
    """How the environment is played where that is a convention: Atari's frame skip, sticky actions,
    no-ops."""


def write_summary(summary: RunSummary, run_dir: Path) -> Path:
    """Write summary.json whole or not at all; a number that is not finite becomes null."""
    path = run_dir / SUMMARY_FILE
    replace_synced(path, summary.model_dump_json(indent=2) + "\n")
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


def write_fleet_tables(tables: FleetTables, run_dir: Path) -> None:
    """Write fleet.json, which tells of a run that has not ended yet; whole, but not durably."""
    temporary = run_dir / f"{TEMPORARY_PREFIX}{FLEET_FILE}"
    temporary.write_text(tables.model_dump_json() + "\n", encoding="utf-8")
    temporary.replace(run_dir / FLEET_FILE)


def read_fleet_tables(run_dir: Path) -> FleetTables:
    """The newest fleet.json; empty before the first, and where it cannot be read."""
    try:
        return FleetTables.model_validate_json((run_dir / FLEET_FILE).read_bytes())
    except (OSError, ValidationError):
        return FleetTables()
