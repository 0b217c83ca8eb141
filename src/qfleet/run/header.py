"""The first lines of a run: what was started, where, and whether it can be repeated.

Called by the composition root.
"""

from __future__ import annotations

import os
import sys

from qfleet.run_files.resume import ResumePoint
from qfleet.run_files.run_directory import RunDirectory
from qfleet.settings.config import Config
from qfleet.settings.config_loading import choice_note

_PATHS = {
    "off": "eager",
    "auto": "compiled where that pays",
    "required": "compiled",
}
_PATHS_WITH_GPU = {**_PATHS, "auto": "CUDA graph", "required": "CUDA graph"}


def header_lines(
    config: Config, directory: RunDirectory, point: ResumePoint | None, resume_kind: str | None
) -> list[str]:
    """What was started: runtime, device, learner's path, reproducibility, resume, directory."""
    schedule = config.effective_schedule
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
    return [
        f"qfleet: {ray} · device {config.learner.device} · "
        f"learner {_learner_path(config)} · "
        f"reproducible: {reproducible}{resumed}",
        f"{choice_note(config)} · {config.actors.count} actors × {config.actors.envs_per_actor} "
        f"environments · {config.replay.shards} replay shards · seed {config.seed}",
        f"run directory {directory.path}",
    ]


def _learner_path(config: Config) -> str:
    """The path that is meant to be taken; the summary names the one that was."""
    learner = config.learner
    gets_gpu = learner.device != "cpu" and learner.num_gpus != 0
    if config.network.is_convolutional and not gets_gpu:
        return _PATHS["off"]
    return (_PATHS_WITH_GPU if gets_gpu else _PATHS)[learner.compile]


def _ray_intention(config: Config) -> str:
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return "joins the Ray of this program"
    if address in (None, "local"):
        return "starts a Ray of its own"
    return f"joins Ray at {address}"
