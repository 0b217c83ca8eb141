"""How RUN arguments are resolved: a path, something inside a run, a name in `runs/`, or nothing.

Called by `eval`, `play`, `status` and by a resume; only looks.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from qfleet.common.errors import ConfigError, NonFiniteError
from qfleet.run_files.checkpoint import PARAMS_FILE
from qfleet.run_files.durable import TEMPORARY_PREFIX

RUNS = Path("runs")
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
LATEST = "latest"
BEST = "best"
OLD_BEST = f"{TEMPORARY_PREFIX}old-best"
"""What stands for `best/` between the two renames that replace it."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LISTED_RUNS = 10


def holds_run(path: str | Path) -> bool:
    """Whether `path` is the directory of a run, finished or not."""
    return (Path(path) / CONFIG_FILE).is_file()


def find_run(argument: str | Path | None) -> Path:
    """The run directory that RUN names: a path, something inside it, a name in `runs/`, or None.

    Raises:
        ConfigError: when there is none; the message lists the runs that exist.
    """
    wanted = RUNS / LATEST if argument is None else checked_place(argument)
    for candidate in (wanted, RUNS / wanted):
        if not candidate.exists():
            continue
        path = _run_around(candidate.absolute())
        if holds_run(path):
            return shorten(path.resolve())
    raise ConfigError(_no_such_run(argument, wanted))


def resolve_run(argument: str | Path | None) -> Path:
    """The parameter file that RUN means.

    A run directory means its `best/`; `RUN/latest`, a checkpoint or a parameter file means itself.

    Raises:
        ConfigError: when there is none; the message lists the runs that exist.
    """
    if argument is not None:
        path = checked_place(argument)
        for candidate in (path, RUNS / path):
            if candidate.is_file():
                return candidate
            if (candidate / PARAMS_FILE).is_file():
                return shorten((candidate / PARAMS_FILE).resolve())
    run = find_run(argument)
    for name in (BEST, OLD_BEST):
        if (run / name / PARAMS_FILE).is_file():
            return run / name / PARAMS_FILE
    raise ConfigError(f"{run} has no {BEST}/: {_why_no_best(run)}; {_instead_of(run)}")


def _why_no_best(run: Path) -> str:
    """How the run ended, from its summary; one that this version cannot read tells nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        summary = json.loads((run / SUMMARY_FILE).read_text())
        ended = str(summary["stop_reason"]).partition("\n")[0]
        how = "diverged" if summary["exit_code"] == NonFiniteError.exit_code else "ended"
        return f"it {how} before the first evaluation ({ended})"
    return "nothing was evaluated yet"


def _instead_of(run: Path) -> str:
    """What can be played: the run's last checkpoint, and the newest other run with a `best/`."""
    found = []
    if (run / LATEST / PARAMS_FILE).is_file():
        found.append(f"use {run / LATEST} for its last checkpoint")
    others = [other for other in existing_runs() if (other / BEST / PARAMS_FILE).is_file()]
    if others:
        found.append(f"the newest run with a {BEST}/ is {others[0]}")
    return " or ".join(found) or "it has no checkpoint either: let it train longer"


def existing_runs() -> list[Path]:
    """The runs under `runs/`, newest first by the time of their configuration."""
    runs = [p.parent for p in RUNS.glob(f"*/{CONFIG_FILE}") if not p.parent.is_symlink()]
    return sorted(runs, key=lambda run: (run / CONFIG_FILE).stat().st_mtime, reverse=True)


def shorten(path: Path) -> Path:
    """`path` relative to the working directory where it lies below it, for messages.

    That directory may be gone: Ray removes the one of a job before its command has ended.
    """
    with contextlib.suppress(ValueError, FileNotFoundError):
        return path.absolute().relative_to(Path.cwd())
    return path


def _run_around(path: Path) -> Path:
    """The run that holds a checkpoint or parameter file; other paths are returned as they are."""
    if path.is_file():
        path = path.parent
    if holds_run(path):
        return path
    if path.name.startswith("ckpt-"):
        return path.parent.parent
    return path.parent if path.name in (BEST, LATEST, OLD_BEST) else path


def checked_place(wanted: str | Path) -> Path:
    """A path that a user gave for a run.

    Raises:
        ConfigError: when it is a URL.
    """
    if _URL.match(str(wanted)):
        raise ConfigError(
            f"{wanted} is a URL, but a run directory must be a path (run.dir): mount the bucket, "
            "or train to a local directory and copy it afterwards"
        )
    return Path(wanted).expanduser()


def _no_such_run(argument: str | Path | None, wanted: Path) -> str:
    head = (
        f"{wanted} does not exist" if argument is None else f"{argument} is no run, nor inside one"
    )
    runs = existing_runs()
    if not runs:
        return f"{head}, and there are no runs under {RUNS}/: make one with `qfleet train`"
    lines = [f"  {run}" for run in runs[:_LISTED_RUNS]]
    if len(runs) > _LISTED_RUNS:
        lines.append(f"  … and {len(runs) - _LISTED_RUNS} older ones")
    return "\n".join([f"{head}. Runs that exist, newest first:", *lines])
