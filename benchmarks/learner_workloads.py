"""What `learner_speed.py` measures: presets and networks of convolutions, with batches of noise.

Observations of the networks of convolutions are stacks of 84x84 frames as bytes, as they would lie
in the replay; they become numbers on the device.
"""

from __future__ import annotations

import importlib.util
import subprocess
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qfleet.bench.part_benchmarks import random_sample, resolved_preset
from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.pixels.stored_columns import STACKS, frame_shape
from qfleet.common.types import NEXT_OBSERVATION, OBSERVATION, EnvironmentSpec, ReplaySample
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

FRAMES = EnvironmentSpec("84x84x4 frames", (4, 84, 84), "|u1", 6, None, None, frame_stack=4)
FRAMES_UPDATES_PER_BLOCK = 8
KEPT_FRAMES = 12_500
"""Of the course's memory of 10,000 transitions."""
PRESETS = {
    "tutorial-state": "the course's MLP with BatchNorm, batch 32, MSE, no double Q",
    "cartpole": "the default preset: no normalization, batch 64, double Q, Huber, clipping",
}
if importlib.util.find_spec("Box2D"):
    PRESETS["lunarlander"] = "with rl-zoo3's two layers of 256: batch 128, Adam, double Q, Huber"
ZOO_LAYERS = {"lunarlander": [256, 256]}
FRAMES_BATCHES = {"frames-32": 32, "frames-512": 512}
COURSE_FRAMES = "course-frames-32"
ON_FRAMES = (*FRAMES_BATCHES, COURSE_FRAMES)


@dataclass(frozen=True)
class Workload:
    """A learner to measure."""

    name: str
    about: str
    plan: LearnerPlan
    environment: EnvironmentSpec

    def sample(self) -> ReplaySample:
        """K batches of noise in host memory."""
        rng = np.random.default_rng(0)
        k, batch_size = self.plan.updates_per_call, self.plan.batch_size
        sample = random_sample(rng, k, batch_size, self.environment)
        if self.environment.frame_stack is not None:
            for name in (OBSERVATION, NEXT_OBSERVATION):
                shape = sample.columns[name].shape
                sample.columns[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        return sample

    def samples_by_place(self) -> tuple[ReplaySample, ReplaySample]:
        """A sample that brings every frame of a replay to the learner, and one after it."""
        rng = np.random.default_rng(0)
        sample, shape = self.sample(), frame_shape(self.environment)
        frames = rng.integers(0, 256, (KEPT_FRAMES, *shape), dtype=np.uint8)
        for name in STACKS:
            named = sample.columns[name].shape[:3]
            sample.columns[name] = rng.integers(0, KEPT_FRAMES, named, dtype=np.int32)
        places = np.arange(KEPT_FRAMES)
        every = NewFrames("benchmark", 1, KEPT_FRAMES, places, frames, np.ones_like(places))
        first, later = ({0: news} for news in (every, every.without_frames()))
        return replace(sample, new_frames=first), replace(sample, new_frames=later)


def workload(name: str) -> Workload:
    """A preset's learner, or one on frames."""
    if name in PRESETS:
        layers = {"network.hidden_sizes": ZOO_LAYERS[name]} if name in ZOO_LAYERS else {}
        config, environment = resolved_preset(name, {"learner.device": "cpu", **layers})
        return Workload(name, PRESETS[name], run_plans(config).learner, environment)
    if name == COURSE_FRAMES:
        per_block = {"learner.updates_per_call": FRAMES_UPDATES_PER_BLOCK, "learner.device": "cpu"}
        changes = {"env.renderer": "fast", **per_block}  # nothing is drawn
        config, environment = resolved_preset("tutorial-pixels", changes)
        about = "the course's ConvNet with BatchNorm, 84x84x8 frames, batch 32, SGD, Huber"
        return Workload(name, about, run_plans(config).learner, environment)
    batch_size, k = FRAMES_BATCHES[name], FRAMES_UPDATES_PER_BLOCK
    learner: dict[str, Any] = {
        "device": "cpu",
        "batch_size": batch_size,
        "updates_per_call": k,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "max_grad_norm": 10.0,
        "target_update_period_learner_steps": 10 * k,
        "publish_period_learner_steps": k,
    }
    config = Config(
        network={"kind": "nature", "hidden_sizes": [512], "normalization": "none"},
        learner=learner,
        eval={"period_learner_steps": 10 * k},
        runtime="local",
    )
    about = f"the network of Mnih et al. 2015, frames as bytes, batch {batch_size}, Adam, double Q"
    plan = run_plans(resolve_config(config, FRAMES, cpus=2, gpus=0)).learner
    return Workload(name, about, plan, FRAMES)


def accelerator(device: str) -> dict[str, Any] | None:
    """What the figures of a GPU depend on beside what every record names; None of a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(torch.device(device))
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def _driver_version() -> str:
    """As the driver's own tool says it, which a container may lack."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown (no nvidia-smi)"
    return (done.stdout.split() or ["unknown"])[0]
