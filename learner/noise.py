"""The random numbers of networks that take some: noisy layers, and the fractions of IQN.

Called by the learner before each block. Drawn with NumPy, so that every form of the block gets the
same; their generator is part of the learner's capture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qfleet.common.network_plan import network_plan
from qfleet.common.seeding import generator
from qfleet.common.types import Array, EnvironmentSpec, ReplaySample
from qfleet.learner.plan import LearnerPlan

N_FORWARDS = 3
"""Of an update, each with noise of its own, as in Fortunato et al. 2018, sec. 3.1 (ε, ε′, ε″)."""


def noise_size(plan: LearnerPlan, spec: EnvironmentSpec) -> int:
    """N: random numbers of one forward; 0 for most networks."""
    if plan.network.factory is not None:
        return 0
    network = network_plan(plan.network, spec.observation_shape, spec.n_actions)
    return network.noise_size(plan.batch_size)


class NoiseSource:
    """Adds noise to samples where the network takes some."""

    def __init__(self, plan: LearnerPlan, spec: EnvironmentSpec) -> None:
        self._size = noise_size(plan, spec)
        self._rng = generator(plan.seed, "learner.noise")

    def add_to(self, sample: ReplaySample) -> ReplaySample:
        """The sample with float32 [K, 3, N] standard normal numbers."""
        return replace(sample, noise=self._draw(sample.n_batches)) if self._size else sample

    def _draw(self, n_updates: int) -> Array:
        return self._rng.standard_normal((n_updates, N_FORWARDS, self._size), dtype=np.float32)

    def capture(self) -> dict[str, Any]:
        """Where the generator stands."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self._rng.bit_generator.state = state
