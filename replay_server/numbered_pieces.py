"""A frozen shard's stream in numbered pieces, so that one whose answer was lost is given out again.

Called by the shard's shell, with its lock held.
"""

from __future__ import annotations

from qfleet.common.capture_stream import encode_rows
from qfleet.replay_server.shard_capture import FrozenShard

PIECES_KEPT = 3
"""So many may be asked for again; the driver has two on their way."""


class NumberedPieces:
    """What comes after the head; pieces may be asked for out of turn, and more than once."""

    def __init__(self, frozen: FrozenShard) -> None:
        self._frozen = frozen
        self._given: dict[int, bytes] = {}
        self._n_taken = 0

    def piece(self, number: int) -> bytes:
        """The piece of that number, the same each time; empty at the end."""
        while self._n_taken <= number:
            self._given[self._n_taken] = b"".join(map(encode_rows, self._frozen.take()))
            self._given.pop(self._n_taken - PIECES_KEPT, None)
            self._n_taken += 1
        return self._given[number]

    def release(self) -> None:
        """Nothing more will be asked for."""
        self._frozen.release()
        self._given.clear()
