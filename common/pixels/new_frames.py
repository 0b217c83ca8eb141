"""Frames on their way to a reader that keeps them and names stacks by the frames' places.

Made by a shard's `FramePool`, kept by the learner's `DeviceFrames`. It stands by itself so that
`common/types.py` can name it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class NewFrames(NamedTuple):
    """What a shard's draws name and their reader has not had; valid from these draws on."""

    n_places: int
    """Places of the shard; more than before when its memory has grown."""
    places: NDArray[Any]
    """int64 [F], each once: where the reader is to have the frames."""
    frames: NDArray[Any]
    """uint8 [F, H, W]."""
