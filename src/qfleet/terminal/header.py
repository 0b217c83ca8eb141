"""The first lines of a run: what was started, where, and whether it can be repeated.

Called by the composition root.
"""

from __future__ import annotations

import os
import sys

from qfleet.run.learner_path import PathAndReason
from qfleet.run.outcome import Outcome
from qfleet.run_files.run_directory import RunDirectory
from qfleet.settings.config import Config
from qfleet.settings.config_loading import choice_note


def header_lines(
    config: Config, directory: RunDirectory, outcome: Outcome, learner_path: PathAndReason
) -> list[str]:
    """What was started: runtime, device, learner's path, reproducibility, resume, directory."""
    schedule = config.effective_schedule
    point, resume_kind = outcome.point, outcome.resume_kind
    ray = "no Ray (local runtime)" if config.runtime == "local" else _ray_intention(config)
    reproducible = (
        f"yes (lockstep, learner.compile {config.learner.compile})"
        if schedule == "lockstep"
        else "no (async); yes with --runtime local or --run.schedule lockstep"
    )
    resumed = ""
    if resume_kind is not None:
        at = f"learner step {point.checkpoint.learner_step:,}" if point else "the beginning"
        resumed = f" · resumed at {at}: {resume_kind}"
    if outcome.init_from is not None:
        resumed = f" · begins with the parameters of {outcome.init_from}"
    return [
        f"qfleet: {ray} · device {config.learner.device} · "
        f"learner {learner_path}{', bfloat16' if config.learner.precision == 'bfloat16' else ''} · "
        f"reproducible: {reproducible}{resumed}",
        f"{choice_note(config)} · {config.actors.count} actors × {config.actors.envs_per_actor} "
        f"environments · {config.replay.shards} replay shards · seed {config.seed}",
        f"run directory {directory.path}",
    ]


def _ray_intention(config: Config) -> str:
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return "joins the Ray of this program"
    if address in (None, "local"):
        return "starts a Ray of its own"
    return f"joins Ray at {address}"
