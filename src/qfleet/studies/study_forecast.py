"""How long a study will take, measured on a few seconds of its first run.

Called by `qfleet study` before anything is kept.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from qfleet.run_files.find_runs import holds_run
from qfleet.settings.config_loading import Config
from qfleet.studies.definition import Study
from qfleet.studies.readings import read_run
from qfleet.studies.runner import Cell, start

PROBE_S = 5.0
PROBE_TIMEOUT_S = 90.0
START_S = 4.0
"""Of each run: imports, a film and a curve."""


class Forecast(NamedTuple):
    """How long it will take, or why nobody knows."""

    seconds: float | None
    reason: str = ""


def forecast(study: Study, missing: list[Cell], at_once: int) -> Forecast:
    """Of the runs that are missing.

    The first arm stands for all: one that diverges early only makes it shorter.
    """
    if not missing:
        return Forecast(0.0)
    config = study.config(missing[0].arm)
    summary = _probe(study, missing[0])
    steps, train_s = float(summary.get("learner_steps", 0)), float(summary.get("train_s", 0))
    if not steps or not train_s:
        return Forecast(None, f"within {PROBE_TIMEOUT_S:g} s the first run has learned nothing")
    left_s = _run_s(config, steps / train_s)
    if left_s is None:
        return Forecast(None, "no budget says where the runs end")
    return Forecast(-(-len(missing) // at_once) * (left_s + START_S))


def _probe(study: Study, cell: Cell) -> dict[str, Any]:
    """The summary of a few seconds of a run; empty where it did not come to an end in time."""
    with tempfile.TemporaryDirectory(prefix="qfleet-study-") as folder:
        probe = Cell(cell.arm, cell.seed, Path(folder) / "arm" / "probe")
        process = start(study, probe, "--run.max_wall_s", f"{PROBE_S:g}")
        try:
            process.wait(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {}
        finally:
            process.kill()
        return read_run(probe.path).summary if holds_run(probe.path) else {}


def _run_s(config: Config, learner_steps_per_s: float) -> float | None:
    """Seconds of one run by the nearest of its budgets."""
    run, learner = config.run, config.learner
    updates: list[float] = []
    if run.max_learner_steps is not None:
        updates.append(run.max_learner_steps)
    if run.max_episodes is not None and learner.updates_per_episode is not None:
        updates.append(run.max_episodes * learner.updates_per_episode)
    if run.max_env_steps is not None and config.replay.samples_per_insert is not None:
        updates.append(run.max_env_steps * config.replay.samples_per_insert / learner.batch_size)
    seconds = [n / learner_steps_per_s for n in updates]
    if run.max_wall_s is not None:
        seconds.append(run.max_wall_s)
    return min(seconds, default=None)
