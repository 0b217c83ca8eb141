"""Runs a study's grid: every arm with every seed, several at once, each in a process of its own.

Called by `qfleet study`. What is there is kept: a run that came to an end is not repeated, one that
was interrupted goes on from its last checkpoint, so the same command may be given again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qfleet.run_files.find_runs import CONFIG_FILE
from qfleet.settings.yaml_settings import dump
from qfleet.studies.comparison import Arm
from qfleet.studies.definition import Study
from qfleet.studies.readings import read_run

POLL_S = 0.2
END_S = 30.0
"""What an interrupted run may take for its last checkpoint."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    arm: str
    seed: int
    path: Path

    @property
    def is_complete(self) -> bool:
        """Whether it came to an end that counts."""
        return (self.path / CONFIG_FILE).is_file() and read_run(self.path).is_complete


def cells(study: Study, folder: Path) -> list[Cell]:
    """The grid, seed by seed, so that every arm is there early."""
    return [
        Cell(arm, seed, folder / _folder_name(arm) / f"seed-{seed}")
        for seed in study.seed_numbers()
        for arm in study.arms
    ]


def _folder_name(arm: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in arm)


def arms_of(study: Study, folder: Path, language: str) -> list[Arm]:
    """What is there of every arm."""
    grid = cells(study, folder)
    return [
        Arm(
            study.label(arm, language),
            [read_run(c.path) for c in grid if c.arm == arm and (c.path / CONFIG_FILE).is_file()],
        )
        for arm in study.arms
    ]


def workers(study: Study) -> int:
    """Runs at a time: each takes the learner's CPUs."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return max(1, cpus // max(study.config(arm).learner.num_cpus for arm in study.arms))


class Grid:
    """The processes of a study; owned by the command's thread."""

    def __init__(self, study: Study, folder: Path, at_once: int) -> None:
        self._study, self.at_once = study, at_once
        self._running: dict[subprocess.Popen[bytes], Cell] = {}
        self.waiting = [cell for cell in cells(study, folder) if not cell.is_complete]
        """Still to run, in order."""

    def run(self, after_each: Callable[[Cell], None]) -> None:
        """Run what is missing; `after_each` is called whenever a run has ended.

        A signal ends the runs as it ends any run, with a checkpoint, and is raised again.
        """
        try:
            while self.waiting or self._running:
                while self.waiting and len(self._running) < self.at_once:
                    cell = self.waiting.pop(0)
                    self._running[start(self._study, cell)] = cell
                for process in [p for p in self._running if p.poll() is not None]:
                    after_each(self._running.pop(process))
                time.sleep(POLL_S)
        finally:
            self._end()

    def _end(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGINT)
        deadline_s = time.monotonic() + END_S
        for process in self._running:
            try:
                process.wait(timeout=max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        self._running.clear()


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a configuration file."""
    content: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return content


def start(study: Study, cell: Cell, *flags: str) -> subprocess.Popen[bytes]:
    """One run as `qfleet train` makes it; what it prints goes into its log."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    settings = cell.path.parent / "settings.yaml"
    settings.write_text(dump(nested(study.settings(cell.arm))))
    command = [sys.executable, "-m", "qfleet", "train", study.preset_of(cell.arm)]
    command += ["--config", str(settings)]
    command += ["--seed", str(cell.seed), "--run-dir", str(cell.path), "--resume", "auto", *flags]
    search = [str(Path.cwd()) if path == "" else path for path in sys.path]
    log = cell.path.parent / f"{cell.path.name}.log"
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
