"""Between a shard's rows and its frames: numbers become places, and places whole stacks.

Owned by a replay shard whose observations are stacks of frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qfleet.common.capture_stream import Shapes
from qfleet.common.errors import InvariantError
from qfleet.common.pixels.new_frames import FrameReader, NewFrames
from qfleet.common.pixels.stored_columns import PLACE_DTYPE, STACKS, frame_shape
from qfleet.common.types import (
    ACTION,
    OBSERVATION,
    Array,
    Columns,
    EnvironmentSpec,
    TransitionChunk,
)
from qfleet.replay_server.frame_pool import UNKNOWN, FramePool
from qfleet.replay_server.frame_stores import Compression
from qfleet.replay_server.frozen_frames import FRAMES, FrozenFrames
from qfleet.replay_server.row_bytes import frame_places
from qfleet.replay_server.storage import RingStorage

_ROWS_AT_ONCE = 8
"""Whose stacks are copied before those of their successors: most frames of both are the same, and
then still in the processor's cache."""
_NO_FRAMES: dict[str, Any] = {"touched": 0, "writers": []}
"""Of a cut without contents: actors send what they name again."""


class FramedRows:
    """Keeps the pool's counts in step with the rows of `storage`; not thread-safe."""

    def __init__(
        self, spec: EnvironmentSpec, storage: RingStorage, compression: Compression = "none"
    ) -> None:
        self._storage = storage
        self._shape = frame_shape(spec)
        self.pool = FramePool(self._shape, frame_places(storage.capacity), compression)

    def check(self, chunk: TransitionChunk) -> None:
        """Raise `InvariantError` unless `take_in` can take the chunk."""
        if chunk.frames is None:
            raise InvariantError("a chunk of stacked observations came without its frames")
        self.pool.check_run(chunk.frames, chunk.chunk_id.actor_slot, chunk.chunk_id.incarnation)

    def take_in(self, chunk: TransitionChunk) -> tuple[Columns, Array]:
        """The chunk's rows as they are appended next, and bool [rows] which of them that are.

        Rows are left out whose frames came in a chunk that this shard never got.
        """
        run, slot = chunk.frames, chunk.chunk_id.actor_slot
        assert run is not None, "check() saw to it"
        self.pool.admit(run, slot, chunk.chunk_id.incarnation)
        placed = {name: self.pool.places(slot, chunk.columns[name]) for name in STACKS}
        is_kept = np.logical_and.reduce([(places != UNKNOWN).all(1) for places in placed.values()])
        placed = {name: places.astype(PLACE_DTYPE) for name, places in placed.items()}
        columns = {n: array[is_kept] for n, array in {**chunk.columns, **placed}.items()}
        overwritten = self._storage.slots_overwritten_by(len(columns[ACTION]))
        for name in STACKS:
            self.pool.use(columns[name][-self._storage.capacity :])
            self.pool.unuse(self._storage.column(name)[overwritten])
        self.pool.keep(slot, run.keep_from)
        return columns, is_kept

    def unfold(self, columns: Mapping[str, Array]) -> Columns:
        """Rows as the learner wants them, uint8 [n, K, H, W] in place of places."""
        n, depth = columns[OBSERVATION].shape
        # One piece for both: the C library keeps memory between calls up to twice the largest
        # piece only, and filling two fresh ones costs nine times as much.
        both = np.empty((len(STACKS), n, depth, *self._shape), dtype=np.uint8)
        for first in range(0, n, _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            for name, stacks in zip(STACKS, both, strict=True):
                self.pool.copy_stacks(columns[name][rows], stacks[rows])
        return {**columns, **dict(zip(STACKS, both, strict=True))}

    def new_frames(self, columns: Mapping[str, Array], reader: FrameReader) -> NewFrames:
        """What a reader that keeps frames needs for these rows beside their places."""
        places = np.concatenate([columns[name].reshape(-1) for name in STACKS])
        return self.pool.new_frames(places, reader)

    def places_named(self) -> list[Array]:
        """The places that rows name, each column as held."""
        return [self._storage.column(name)[: self._storage.size] for name in STACKS]

    def freeze(self) -> FrozenFrames:
        """The frames as of now, beginning with the oldest row's."""
        oldest = self._storage.oldest_slot
        first = int(self._storage.column(OBSERVATION)[oldest][0]) if self._storage.size else 0
        return FrozenFrames(self.pool, first)

    def shapes(self, n_frames: int) -> Shapes:
        """What `freeze` gives out when so many frames are held."""
        return {FRAMES: ("|u1", (n_frames, *self._shape))}

    def begin_restore(self, meta: dict[str, Any] | None) -> Columns:
        """Become empty; the array to write the captured frames into before `end_restore`."""
        if meta is None:
            self.pool.begin_restore(_NO_FRAMES)
            return {}
        return {FRAMES: self.pool.begin_restore(meta)}

    def end_restore(self, meta: dict[str, Any] | None) -> None:
        """The frames are there, and so are the storage's rows."""
        self.pool.end_restore(_NO_FRAMES if meta is None else meta, self.places_named())

    def check_valid(self) -> None:
        """Raise `InvariantError` unless the pool counts what the rows name."""
        self.pool.check_valid(self.places_named())
