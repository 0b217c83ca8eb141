"""The newest K frames of each sub-environment; a stack never crosses an episode.

Used by the vector environment adapter. An episode's first stack repeats its reset frame K times.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.types import Array


class FrameStack:
    """Stacks `uint8 [E, K, H, W]`, the newest frame last; owned by one environment adapter."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def started(self, frames: Array) -> Array:
        """Stacks of episodes that begin with `frames` [E, H, W]."""
        return np.repeat(frames[:, None], self._depth, axis=1)

    def followed(self, stacks: Array, frames: Array, begins: Array) -> Array:
        """New stacks after one more frame each; where `begins` bool [E], of a new episode."""
        stacks = np.concatenate([stacks[:, 1:], frames[:, None]], axis=1)
        stacks[begins] = frames[begins, None]
        return stacks
