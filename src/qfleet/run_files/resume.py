"""What a resumed run may change, which checkpoint it goes on from, and when there is nothing to do.

Called by the composition root before anything is started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qfleet.common.capture_stream import restoring
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run_files.checkpoint import FORMAT_VERSION, SESSION_FILE
from qfleet.run_files.checkpoint_reader import Checkpoint, newest_valid
from qfleet.run_files.find_runs import CONFIG_FILE, find_run, holds_run
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import read_summary
from qfleet.settings.config import Config, section_names
from qfleet.settings.problems import show_value
from qfleet.settings.yaml_settings import load_plain

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
    def role_files(self) -> dict[str, memoryview]:
        """The cores' captures by file name, mapped for as long as the result lives."""
        names = [name for name in self.checkpoint.names if name.endswith(".qflt")]
        return {name: self.checkpoint.open(name) for name in names}


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
    """The resolved configuration that the run was started with.

    Raises:
        ConfigError: when its file is damaged, or of a qfleet with other keys.
    """
    path = run / CONFIG_FILE
    try:
        return Config.model_validate(load_plain(path.read_text(), str(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error


def with_saved_numbers(wanted: Config, saved: Config) -> Config:
    """`wanted` with each `auto` that must not change as the run had resolved it.

    The derived sizes follow from keys that may change (`actors.count`, `eval.*`) and from the
    machine; a resumed run keeps its own. In lockstep so does `actors.count`: a machine with other
    CPUs must not change the bits unasked.
    """
    sections = {}
    stays = {"actors.count"} if wanted.effective_schedule == "lockstep" else set()
    for name in section_names():
        section, old = getattr(wanted, name), getattr(saved, name)
        kept = {
            key: getattr(old, key)
            for key, value in section
            if value == "auto" and (not _may_change(f"{name}.{key}") or f"{name}.{key}" in stays)
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
    if found.manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{found.path} is of format {found.manifest['format_version']}, of an older qfleet: it "
            f"can be played and evaluated, but only format {FORMAT_VERSION} can be resumed; train "
            "it on with the qfleet that wrote it, or begin a new run from it with --init-from"
        )
    if SESSION_FILE not in found.names:
        raise CheckpointError(f"{found.path} holds no {SESSION_FILE}")
    with restoring(f"{found.path / SESSION_FILE}"):
        return ResumePoint(found, read_session(bytes(found.open(SESSION_FILE))), skipped)


def read_session(data: bytes) -> dict[str, Any]:
    """The session's state; what is asked of it before it is restored is there and of its type."""
    state = json.loads(data)
    if not isinstance(state["run_id"], str) or type(state["process"]) is not int:
        raise TypeError("run_id must be a text and process a number")
    return dict(state)
