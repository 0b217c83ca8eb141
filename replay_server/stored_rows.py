"""A shard's transitions as a checkpoint holds them, for readers that need no shard.

Called by `qfleet.ReplayDataset`. `shard_capture.py` writes what is read here.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.capture_stream import restoring
from qfleet.common.errors import CheckpointError
from qfleet.common.pixels.stored_columns import STACKS
from qfleet.common.types import Array, Capture, Columns
from qfleet.replay_server.frozen_frames import FRAMES
from qfleet.replay_server.storage import COLUMN_PREFIX


class StoredRows:
    """The rows of one captured shard by age, row 0 the oldest; they are only read.

    Stacks of frames are put together when a row is asked for: each frame is held once.

    Raises:
        CheckpointError: when the capture holds no rows, or is damaged.
    """

    def __init__(self, capture: Capture, path: str) -> None:
        with restoring(path):
            storage = capture.meta["storage"]
            if not storage["contents"]:
                raise CheckpointError(
                    f"{path} holds no transitions: the run wrote its checkpoints without them "
                    "(run.checkpoint_replay none)"
                )
            self._size = int(storage["size"])
            is_full = self._size == storage["capacity"]
            self._oldest_slot = storage["appended"] % storage["capacity"] if is_full else 0
            self._columns: Columns = {
                name: capture.arrays[COLUMN_PREFIX + name] for name, _, _ in storage["specs"]
            }
            self._frames: Array | None = capture.arrays.get(FRAMES)

    def __len__(self) -> int:
        return self._size

    def value(self, column: str, row: int) -> Array:
        """One entry of a row: a copy `[…]` of an array, or a scalar of the column's dtype."""
        value = self._columns[column][(self._oldest_slot + row) % self._size]
        if self._frames is not None and column in STACKS:
            return np.asarray(self._frames[value])  # places [K] -> uint8 [K, H, W]
        copied: Array = value.copy()
        return copied
