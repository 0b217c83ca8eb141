"""Frames on their way to a reader that keeps them and names stacks by the frames' places.

Made by a shard's `FramePool`, kept by the learner's `DeviceFrames`. It stands by itself so that
`common/types.py` can name it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class FrameReader(NamedTuple):
    """Who asks a shard for draws by place; it keeps what came with the answers it names."""

    name: str
    """Of one reader in its time with one shard: another name has no frames yet."""
    received: tuple[int, ...] = ()
    """Numbers of the last answers that it took the frames of; said more than once, in case a
    request is lost."""


class NewFrames(NamedTuple):
    """What a shard's draws name and their reader is not known to have; valid from these on."""

    reader: str
    """Its name."""
    answer: int
    """Number of the answer, from 1; higher the later the draws were made."""
    n_places: int
    """Places of the shard; more than before when its memory has grown."""
    places: NDArray[Any]
    """int64 [F], each once: where the reader is to have the frames."""
    frames: NDArray[Any]
    """uint8 [F, H, W]."""
    since: NDArray[Any]
    """int64 [F]: number of the answer that was the first to carry the frame."""

    def without_frames(self) -> NewFrames:
        """The same for draws of the answer whose reader has taken the frames already."""
        return self._replace(places=self.places[:0], frames=self.frames[:0], since=self.since[:0])
