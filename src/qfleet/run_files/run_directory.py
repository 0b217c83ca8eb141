"""The directory of one run: its layout, and who may write to it.

Called by `train`, which creates or resumes one and holds its lock. The driver is the single writer.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run_files import checkpoint
from qfleet.run_files.durable import TEMPORARY_PREFIX, replace_synced, sync_directory
from qfleet.run_files.find_runs import (
    BEST,
    CONFIG_FILE,
    LATEST,
    OLD_BEST,
    RUNS,
    SUMMARY_FILE,
    checked_place,
    find_run,
    holds_run,
)
from qfleet.run_files.identity import RunIdentity
from qfleet.run_files.run_lock import LOCK_FILE, RunLock
from qfleet.settings.config import Config

LEARNING_CURVE_FILE = "learning_curve.png"
RESERVED_BYTES = 256 * 1024
"""Room that a run keeps for its summary while it goes on."""
_REPORTED_PACKAGES = ("qfleet", "torch", "ray", "gymnasium", "numpy")


class RunDirectory:
    """A run's directory, locked for this process until `close`.

    Make one with `create` or `open_for_resume`; it is also a context manager.
    """

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock
        self.config_path = path / CONFIG_FILE
        self.command_path = path / "cmd.txt"
        self.checkpoints_path = path / "checkpoints"
        self.best_path = path / BEST
        self.latest_path = path / LATEST
        self.videos_path = path / "videos"
        self.logs_path = path.absolute() / "logs"
        self.learning_curve_path = path / LEARNING_CURVE_FILE
        self.summary_path = path / SUMMARY_FILE
        self.identity = RunIdentity(path)
        self._room_path = path / f"{TEMPORARY_PREFIX}room"

    @classmethod
    def create(cls, config: Config, explicit: str | Path | None = None) -> RunDirectory:
        """A new, empty run directory: `explicit`, else `run.dir`, else one under `runs/`.

        Raises:
            ConfigError: for a URL, a place that cannot be written, a directory that holds
                something else or another run, or one that is in use.
        """
        wanted = explicit or config.run.dir
        if wanted is None:
            path = _make_default(config)
        else:
            path = checked_place(wanted)
            _make_directory(path)
        run = cls(path, RunLock.acquire(path))
        try:
            run._check_empty()
        except BaseException:
            run.close()
            raise
        _point_runs_latest(path, required=wanted is None)
        return run

    @classmethod
    def open_for_resume(cls, argument: str | Path) -> RunDirectory:
        """The existing run `argument`, after removing what its last process left half done.

        Raises:
            ConfigError: when there is no such run, or it is in use.
        """
        path = find_run(argument)
        _make_directory(path)
        run = cls(path, RunLock.acquire(path))
        if not run.best_path.exists() and (path / OLD_BEST).is_dir():
            os.rename(path / OLD_BEST, run.best_path)
        checkpoint.clean_stray(path)
        checkpoint.clean_stray(run.checkpoints_path)
        _point_runs_latest(path, required=False)
        return run

    def _check_empty(self) -> None:
        if holds_run(self.path):
            raise ConfigError(
                f"{self.path} holds a run already (run.dir): continue it with "
                f"--resume {shlex.quote(str(self.path))}, or choose another --run-dir"
            )
        others = sorted(p.name for p in self.path.iterdir() if p.name != LOCK_FILE)
        if others:
            raise ConfigError(
                f"{self.path} is not empty and holds no qfleet run ({others[0]} …) (run.dir): "
                "choose an empty or a new directory with --run-dir"
            )

    def write_config(self, text: str) -> None:
        """Write the resolved configuration; from then on the directory counts as a run.

        Raises:
            ConfigError: when there is no room for it.
        """
        with _writable(self.config_path):
            replace_synced(self.config_path, text)

    def write_command(self, arguments: Sequence[str]) -> None:
        """Append the command line to cmd.txt, so that resumed runs keep their history."""
        with _writable(self.command_path), open(self.command_path, "a", encoding="utf-8") as file:
            file.write(shlex.join(arguments) + "\n")

    def reserve_room(self) -> None:
        """Keep room on the disk for what comes last, if there is any, until `release_room`."""
        with contextlib.suppress(OSError), open(self._room_path, "wb") as file:
            file.write(bytes(RESERVED_BYTES))

    def release_room(self) -> None:
        """Give it back: the summary is written now."""
        self._room_path.unlink(missing_ok=True)

    def write_checkpoint(
        self,
        *,
        learner_step: int,
        generation: int,
        files: Mapping[str, Iterable[bytes]],
        manifest: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Commit a checkpoint, point `latest` at it and remove all but the newest `keep`.

        Raises:
            CheckpointError: when any of that failed; earlier checkpoints are then as they were.
        """
        path = checkpoint.write_checkpoint(
            self.checkpoints_path,
            learner_step=learner_step,
            generation=generation,
            files=files,
            manifest=manifest,
        )
        try:
            _replace_link(self.latest_path, os.path.relpath(path, self.path))
            checkpoint.prune(self.checkpoints_path, keep, path)
        except OSError as error:
            raise CheckpointError(f"{path} is committed, but then: {error}") from error
        return path

    def write_best(
        self,
        *,
        learner_step: int,
        generation: int,
        files: Mapping[str, Iterable[bytes]],
        manifest: Mapping[str, Any],
    ) -> Path:
        """Replace `best/`; it has a checkpoint's format, so the same reader checks it.

        Two renames make the exchange. Between them the old directory stands under a name that
        `find_params` and `open_for_resume` know.
        """
        temporary, old = self.path / f"{TEMPORARY_PREFIX}{BEST}", self.path / OLD_BEST
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            checkpoint.write_sealed(
                temporary,
                learner_step=learner_step,
                generation=generation,
                files=files,
                extra=manifest,
            )
            if self.best_path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(self.best_path, old)
            os.rename(temporary, self.best_path)
            sync_directory(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.best_path} was not written: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if self.best_path.exists():
                shutil.rmtree(old, ignore_errors=True)
        return self.best_path

    def close(self) -> None:
        """Give the lock back; calling it twice does no harm."""
        self.release_room()
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment_report() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers; imports none of them."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _make_default(config: Config) -> Path:
    environment = re.sub(r"[^A-Za-z0-9._-]+", "-", config.env.factory or config.env.id)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{environment}__{config.preset_name}__s{config.seed}__{stamp}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = RUNS / f"{name}{suffix}"
        if not path.exists():
            _make_directory(path, exist_ok=False)
            return path
    raise ConfigError(f"{RUNS / name} exists a thousand times over: name one with --run-dir")


def _make_directory(path: Path, *, exist_ok: bool = True) -> None:
    """Make `path` and prove that it can be written: permission bits tell root nothing."""
    with _writable(path):
        path.mkdir(parents=True, exist_ok=exist_ok)
        with tempfile.NamedTemporaryFile(dir=path, prefix=TEMPORARY_PREFIX):
            pass


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror} (run.dir): "
            "name a writable directory with --run-dir"
        ) from error


def _point_runs_latest(path: Path, *, required: bool) -> None:
    """Link `runs/latest` to `path`; a read-only working directory only matters for default runs."""
    link = RUNS / LATEST
    try:
        RUNS.mkdir(exist_ok=True)
        if link.exists() and not link.is_symlink():
            return  # someone's own directory: not ours to replace
        _replace_link(link, os.path.relpath(path.resolve(), RUNS.resolve()))
    except OSError as error:
        if required:
            raise ConfigError(f"{link} cannot be written: {error.strerror}") from error


def _replace_link(link: Path, target: str) -> None:
    temporary = link.with_name(f"{TEMPORARY_PREFIX}{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, link)
