"""The frames of a pool as they were at one moment, given out little by little while inserts go on.

Made by a shard of stacked observations for a checkpoint. Nothing is copied ahead: a place that the
reader has not come to is not given to another frame (`FramePool.freeze`), and one it has passed is.
It begins at the oldest row's frames, which inserts free first.
"""

from __future__ import annotations

from qfleet.common.capture_stream import Rows
from qfleet.replay_server.frame_pool import FramePool

FRAMES = "frames"


class FrozenFrames:
    """A stream of frames in progress; owned by the pool's process, not thread-safe."""

    def __init__(self, pool: FramePool, first: int) -> None:
        self._pool = pool
        self._n_frames = pool.touched
        self._next, self._left = first, self._n_frames
        pool.freeze()

    def take(self, n_bytes: int) -> list[Rows]:
        """The next frames as copies, about `n_bytes` of them; empty when all were given out."""
        if self._left == 0:
            return []
        wanted = max(1, n_bytes // self._pool.frame_bytes)
        stop = min(self._next + min(wanted, self._left), self._n_frames)
        rows = Rows(FRAMES, self._next, self._pool.frames(self._next, stop).copy())
        self._pool.passed(self._next, stop)
        self._left -= stop - self._next
        self._next = stop % self._n_frames
        return [rows]

    def release(self) -> None:
        """Nothing more will be asked for."""
        self._left = 0
        self._pool.thaw()
