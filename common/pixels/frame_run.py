"""How frames travel: each once, beside transitions that name them by number.

Made by an actor's `FrameTrail`, taken in by a shard's `FramePool`. It stands by itself so that
`common/types.py` can name it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class FrameRun(NamedTuple):
    """The new frames of one chunk. An actor numbers its frames 0, 1, 2, … over all sub-envs."""

    first: int
    """Number of `frames[0]`."""
    keep_from: int
    """No later chunk names a frame below this."""
    frames: NDArray[Any]
    """uint8 [F, H, W]."""

    @property
    def end(self) -> int:
        """The number that the next run begins with."""
        return self.first + len(self.frames)
