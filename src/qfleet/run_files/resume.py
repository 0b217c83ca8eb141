"""What a resumed run may change, which checkpoint it goes on from, and when there is nothing to do.

Called by the composition root before anything is started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run_files.checkpoint import SESSION_FILE, Checkpoint, newest_valid
from qfleet.run_files.run_directory import CONFIG_FILE, RunDirectory, find_run, holds_run
from qfleet.run_files.summary import read_summary
from qfleet.settings.config import Config, section_names
from qfleet.settings.problems import show_value

CHANGEABLE_SECTIONS = frozenset({"run", "eval", "metrics", "ray"})
CHANGEABLE_KEYS = frozenset({"actors.count"})
AUTO = "auto"


@dataclass(frozen=True)
class ResumePoint:
    """A valid checkpoint and the session's state in it."""

    checkpoint: Checkpoint
    session: dict[str, Any]
    skipped: list[str]
    """Newer checkpoints that were damaged, each with the reason."""

    @property
    def role_files(self) -> dict[str, bytes]:
        """The cores' captures by file name."""
        return {n: d for n, d in self.checkpoint.files.items() if n.endswith(".qflt")}


def target_of(resume: str | None, run_dir: str | None) -> Path | None:
    """The run to continue; None: start a new one.

    Raises:
        ConfigError: when RUN does not exist, or `auto` has no directory to look into.
    """
    if resume is None:
        return None
    if resume != AUTO:
        return find_run(resume)
    if run_dir is None:
        raise ConfigError("--resume auto needs --run-dir DIR: the directory to start or continue")
    return Path(run_dir) if holds_run(run_dir) else None


def load_saved_config(run: Path) -> Config:
    """The resolved configuration that the run was started with."""
    return Config.model_validate(yaml.safe_load((run / CONFIG_FILE).read_text()))


def with_saved_numbers(wanted: Config, saved: Config) -> Config:
    """`wanted` with each `auto` that must not change as the run had resolved it.

    The derived sizes follow from keys that may change (`actors.count`, `eval.*`) and from the
    machine; a resumed run keeps its own.
    """
    sections = {}
    for name in section_names():
        section, old = getattr(wanted, name), getattr(saved, name)
        kept = {
            key: getattr(old, key)
            for key, value in section
            if value == "auto" and not _may_change(f"{name}.{key}")
        }
        sections[name] = section.model_copy(update=kept)
    return wanted.model_copy(update=sections)


def check_compatible(saved: Config, wanted: Config) -> None:
    """Raise `CheckpointError` (exit 3) listing every key that must not change on resume."""
    old, new = _flatten(saved), _flatten(wanted)
    differing = [
        f"  {key}: the run has {show_value(old.get(key))}, asked for {show_value(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    ]
    if differing:
        raise CheckpointError(
            "this run cannot be resumed with other values of\n"
            + "\n".join(differing)
            + "\nonly run.*, eval.*, metrics.*, ray.* and actors.count may change; leave the "
            "others out, or start a new run"
        )


def _may_change(key: str) -> bool:
    return key in CHANGEABLE_KEYS or key.partition(".")[0] in CHANGEABLE_SECTIONS


def _flatten(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json", by_alias=True).items():
        if name in section_names():
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def is_complete(run: Path, wanted: Config) -> bool:
    """Whether the run is finished or solved and `wanted` gives it nothing more to do.

    Budgets are held against those in force when it ended, which a resume may have raised.
    """
    summary = read_summary(run)
    if summary is None or summary.status not in ("solved", "finished"):
        return False
    if summary.solved and wanted.eval.stop_when_solved:
        return True
    if summary.stop_reason == "solved":
        return False  # the goal ended it, and is none any more
    return not any(
        _is_raised(limit, getattr(wanted.run, name)) for name, limit in summary.budgets.items()
    )


def _is_raised(old: float, new: float | None) -> bool:
    return new is None or new > old


def find_point(directory: RunDirectory) -> ResumePoint | None:
    """The newest valid checkpoint; None when the run ended before its first.

    Raises:
        CheckpointError: when there are checkpoints but none is valid, with each one's reason.
    """
    found, skipped = newest_valid(directory.checkpoints_path)
    if found is None:
        if skipped:
            raise CheckpointError(
                f"no checkpoint of {directory.path} is usable:\n  " + "\n  ".join(skipped)
            )
        return None
    if SESSION_FILE not in found.files:
        raise CheckpointError(f"{found.path} holds no {SESSION_FILE}")
    return ResumePoint(found, json.loads(found.files[SESSION_FILE]), skipped)
