"""What `gpu_figures.py` measures: two presets and a convolutional network, with batches of noise.

Observations of the convolutional network are stacks of four 84x84 frames as bytes, as they would
lie in the replay; they become numbers on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from qfleet.bench.part_benchmarks import random_sample, resolved_preset
from qfleet.common.types import NEXT_OBSERVATION, OBSERVATION, EnvironmentSpec, ReplaySample
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

FRAMES = EnvironmentSpec("84x84x4 frames", (84, 84, 4), "|u1", 6, None, None)
FRAMES_UPDATES_PER_BLOCK = 8
PRESETS = {
    "tutorial-state": "the course's MLP with BatchNorm, batch 32, MSE, no double Q",
    "cartpole": "the default preset: no normalization, batch 64, double Q, Huber, clipping",
}


class NatureNetwork(nn.Module):
    """The convolutional network of Mnih et al. 2015, from gray values to action values."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        assert n_inputs == FRAMES.n_inputs
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
            nn.Linear(512, n_actions),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Q-values `[B, A]` of gray values 0…255 `[B, 84·84·4]`."""
        frames = observations.reshape(-1, 84, 84, 4).permute(0, 3, 1, 2)  # [B, H, W, K] -> K first
        q_values: Tensor = self.layers(frames.float() / 255.0)
        return q_values


@dataclass(frozen=True)
class Workload:
    """A learner to measure."""

    name: str
    about: str
    plan: LearnerPlan
    environment: EnvironmentSpec

    @property
    def n_updates(self) -> int:
        """K, the updates of a block."""
        return self.plan.updates_per_call

    def sample(self, seed: int) -> ReplaySample:
        """K batches of noise in host memory."""
        rng = np.random.default_rng(seed)
        batch_size = self.plan.batch_size
        sample = random_sample(rng, self.n_updates, batch_size, self.environment)
        if self.environment == FRAMES:
            for name in (OBSERVATION, NEXT_OBSERVATION):
                shape = sample.columns[name].shape
                sample.columns[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        return sample


def preset_workload(name: str, updates_per_block: int | None) -> Workload:
    """A preset's learner, with its own K unless told otherwise."""
    changes: dict[str, object] = {"learner.device": "cpu"}
    if updates_per_block is not None:
        changes["learner.updates_per_call"] = updates_per_block
    config, environment = resolved_preset(name, changes)
    return Workload(name, PRESETS[name], run_plans(config).learner, environment)


def frames_workload(batch_size: int, updates_per_block: int | None) -> Workload:
    """A learner on frames."""
    k = updates_per_block or FRAMES_UPDATES_PER_BLOCK
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
        network={"factory": f"{__name__}:NatureNetwork"},
        learner=learner,
        eval={"period_learner_steps": 10 * k},
        runtime="local",
    )
    about = f"the network of Mnih et al. 2015, frames as bytes, batch {batch_size}, Adam, double Q"
    plan = run_plans(resolve_config(config, FRAMES, cpus=2, gpus=0)).learner
    return Workload(f"frames-{batch_size}", about, plan, FRAMES)
