"""Bytes that a transition takes in a full replay memory, from its columns and the sampler's."""

from __future__ import annotations

import math

import numpy as np

from qfleet.common.pixels.stored_columns import frame_shape, held_columns
from qfleet.common.types import EnvironmentSpec

_PRIORITY_BYTES = {
    "uniform": 0,
    "prioritized": 16,  # one float64 leaf and one inner node of the sum tree
    "rank": 32,  # |TD error|, place in the order, weight of a rank and their running sum
}


ASSUMED_COMPRESSION = 4
"""Of compressed frames before any was seen; Atari's and CartPole's need less room."""


FRAMES_PER_ROW = 1.25
"""Places for frames at the start: one per step and one per episode, and what is on its way."""
SPARE_FRAMES = 1024


def frame_places(capacity: int) -> int:
    """Of a shard at its start; it has more only when very many writers, or short episodes, ask."""
    return int(FRAMES_PER_ROW * capacity) + SPARE_FRAMES


def row_bytes(spec: EnvironmentSpec, sampling: str, compression: str) -> int:
    """Of one transition; a frame is stored once, and there is one per step."""
    row = sum(
        np.dtype(column.dtype).itemsize * math.prod(column.shape) for column in held_columns(spec)
    )
    if spec.frame_stack is not None:
        frame = math.prod(frame_shape(spec))
        row += frame if compression == "none" else frame // ASSUMED_COMPRESSION
    return row + _PRIORITY_BYTES[sampling]
