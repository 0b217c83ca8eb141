"""`scale.json` in a run directory: how many actors somebody wants of a run that goes on.

Written by `qfleet scale`, taken (and removed) by the run's driver. It crosses no network: the
command must see the run directory that the driver writes to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SCALE_FILE = "scale.json"


def write_scale_request(run_dir: Path, actors: int) -> None:
    """Ask for so many actors; whole or not at all, a later request replaces an earlier one."""
    temporary = run_dir / f".{SCALE_FILE}-{os.getpid()}"
    temporary.write_text(json.dumps({"actors": actors}) + "\n", encoding="utf-8")
    temporary.replace(run_dir / SCALE_FILE)


def take_scale_request(run_dir: Path) -> int | None:
    """The number that is asked for, which is then taken; None without a request.

    A file that says nothing of the kind is removed as well.
    """
    path = run_dir / SCALE_FILE
    try:
        data = path.read_bytes()
        path.unlink()
        actors = json.loads(data)["actors"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return actors if type(actors) is int and actors > 0 else None


def is_scale_request_open(run_dir: Path) -> bool:
    """Whether the driver has not taken it yet."""
    return (run_dir / SCALE_FILE).exists()


def withdraw_scale_request(run_dir: Path) -> None:
    """Nobody is to take it any more."""
    (run_dir / SCALE_FILE).unlink(missing_ok=True)
