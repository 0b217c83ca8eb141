"""Frames of one shard, each held once for as long as a row or a writer's next chunk may name it.

Owned by a replay shard whose observations are stacks. Rows hold the *places* of their frames; how
many rows do is counted per frame, so that episodes of any length, many writers and a ring that
overwrites them in its own order need no agreement about which frame is the oldest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.pixels.new_frames import FrameReader, NewFrames
from qfleet.common.pixels.stored_columns import PLACE_DTYPE
from qfleet.common.types import Array
from qfleet.replay_server.frame_stores import Compression, make_store
from qfleet.replay_server.row_bytes import SPARE_FRAMES
from qfleet.replay_server.sent_frames import SentFrames

UNKNOWN = -1
"""Stands for a frame that this shard never got, or that its writer had given up."""
_GROWTH = 1.5
HELD_BYTES = 16 * 1024 * 1024
"""Room for frames that are freed before the reader of a cut has come to them."""


@dataclass(slots=True)
class _Writer:
    """The frames that an actor slot may still name, numbered from `first` on."""

    incarnation: int
    first: int
    places: Array
    """int64 [n], `UNKNOWN` where a lost chunk had carried them."""

    @property
    def end(self) -> int:
        return self.first + len(self.places)


class FramePool:
    """Not thread-safe. `uses` of a frame: rows that name it (as often as they do), plus its writer.

    The lowest free places are given first, so that what is resident follows what is needed.
    """

    def __init__(
        self, shape: tuple[int, ...], n_places: int, compression: Compression = "none"
    ) -> None:
        self._shape, self._compression = shape, compression
        self._frames = make_store(compression, n_places, shape)
        self._uses = np.zeros(len(self._frames), dtype=np.int32)
        self._sent = SentFrames(len(self._frames))
        self._free = np.arange(len(self._frames) - 1, -1, -1, dtype=PLACE_DTYPE)
        """Free places as a stack whose top is its end, below `_n_free`."""
        self._n_free = len(self._free)
        self._touched = 0
        """Places below this have held a frame."""
        self._writers: dict[int, _Writer] = {}
        self._unread: Array | None = None
        """bool [touched at the cut]: places that the reader of a cut has not come to yet."""
        self._is_held = np.zeros(0, dtype=bool)
        """Which of them became free meanwhile: they are given again once they are read."""
        self._n_held = 0

    @property
    def size(self) -> int:
        """Frames held."""
        return len(self._frames) - self._n_free - self._n_held

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return int(np.prod(self._shape))

    @property
    def touched(self) -> int:
        """Places that have ever held a frame: what is resident, and what a cut consists of."""
        return self._touched

    def check_run(self, run: FrameRun, slot: int, incarnation: int) -> None:
        """Raise `InvariantError` unless `admit` can take it.

        A run may come after its successor, which then had rows that name frames unknown here.

        Raises:
            InvariantError: when frames are of another shape, or numbers were given before.
        """
        if run.frames.dtype != np.uint8 or run.frames.shape[1:] != self._shape:
            raise InvariantError(
                f"frames are {run.frames.dtype}{list(run.frames.shape)}, "
                f"must be uint8 [F, {', '.join(map(str, self._shape))}]"
            )
        writer = self._writers.get(slot)
        known = writer.end if writer is not None and writer.incarnation == incarnation else 0
        numbers = np.arange(run.first, min(run.end, known))
        is_repeated = len(numbers) > 0 and (self.places(slot, numbers) != UNKNOWN).any()
        if is_repeated or not 0 <= run.keep_from <= run.end:
            raise InvariantError(
                f"frames {run.first}…{run.end - 1}, kept from {run.keep_from}, "
                f"do not follow frame {known - 1} (actor {slot})"
            )

    def admit(self, run: FrameRun, slot: int, incarnation: int) -> None:
        """Hold the frames of a chunk for its writer; call `keep` once its rows are in.

        Those of a run that comes after its successor are not taken: who named them was left out.
        """
        writer = self._writers.get(slot)
        if writer is None or writer.incarnation != incarnation:
            if writer is not None:
                self._unuse(writer.places)
            writer = _Writer(incarnation, run.first, np.empty(0, dtype=np.int64))
            self._writers[slot] = writer
        if run.first < writer.end:
            return
        lost = np.full(run.first - writer.end, UNKNOWN)
        places = self._taken(len(run.frames))
        self._frames.put(places, run.frames)
        self._sent.overwritten(places)
        self._uses[places] = 1
        writer.places = np.concatenate([writer.places, lost, places])

    def keep(self, slot: int, keep_from: int) -> None:
        """The slot's writer will not name frames below `keep_from` any more."""
        writer = self._writers[slot]
        n = min(max(0, keep_from - writer.first), len(writer.places))
        self._unuse(writer.places[:n])
        writer.places, writer.first = writer.places[n:].copy(), writer.first + n

    def places(self, slot: int, numbers: Array) -> Array:
        """Where the slot's frames of `numbers` lie, same shape; `UNKNOWN` where they do not."""
        writer = self._writers[slot]
        indices = numbers - writer.first
        is_known = (indices >= 0) & (indices < len(writer.places))
        if not len(writer.places):
            return np.full(numbers.shape, UNKNOWN)
        return np.where(is_known, writer.places.take(indices, mode="clip"), UNKNOWN)

    def use(self, places: Array) -> None:
        """Rows that name `places` were stored."""
        np.add.at(self._uses, places.reshape(-1), 1)

    def unuse(self, places: Array) -> None:
        """Rows that named `places` were overwritten."""
        self._unuse(places.reshape(-1))

    def copy_stacks(self, places: Array, stacks: Array) -> None:
        """Write the frames at `places` [n, K] into `stacks` uint8 [n, K, H, W], contiguous."""
        self._frames.copy(places.reshape(-1), stacks.reshape(places.size, -1))

    def new_frames(self, places: Array, reader: FrameReader) -> NewFrames:
        """Of the frames at `places` [n] those that the reader is not known to have."""
        number, places, since = self._sent.answer(reader, places)
        frames = np.empty((len(places), *self._shape), dtype=np.uint8)
        self._frames.copy(places, frames.reshape(len(places), self.frame_bytes))
        return NewFrames(reader.name, number, len(self._frames), places, frames, since)

    def clear(self) -> None:
        """Forget the frames of all rows; writers keep theirs."""
        held = [w.places[w.places != UNKNOWN] for w in self._writers.values()]
        self._uses[:] = 0
        for places in held:
            self._uses[places] = 1
        self._collect_free()

    def _taken(self, n: int) -> Array:
        if n > self._n_free:
            self._grow(n)
        self._n_free -= n
        places = self._free[self._n_free : self._n_free + n][::-1].astype(np.int64)
        self._touched = max(self._touched, int(places.max(initial=-1)) + 1)
        return places

    def _unuse(self, places: Array) -> None:
        places = places[places != UNKNOWN]
        np.subtract.at(self._uses, places, 1)
        freed = np.unique(places[self._uses[places] == 0])
        if self._unread is not None:
            held = freed[freed < len(self._unread)]
            held = held[self._unread[held]]
            self._is_held[held] = True
            self._n_held += len(held)
            freed = np.setdiff1d(freed, held)
        self._give_back(freed)

    def _give_back(self, freed: Array) -> None:
        self._free[self._n_free : self._n_free + len(freed)] = freed[::-1]
        self._n_free += len(freed)

    def _grow(self, n: int) -> None:
        """Rare: very many writers, or episodes of one step, need more frames than rows."""
        old = len(self._frames)
        new = max(int(old * _GROWTH), old + n)
        self._frames.grow(new, self._touched)
        self._uses = np.concatenate([self._uses, np.zeros(new - old, dtype=np.int32)])
        self._sent.grow(new - old)
        free = np.arange(new - 1, old - 1, -1, dtype=PLACE_DTYPE)
        free = np.concatenate([free, self._free[: self._n_free]])
        self._free, self._n_free = np.resize(free, new), len(free)

    def _collect_free(self) -> None:
        free = np.flatnonzero(self._uses == 0)[::-1].astype(PLACE_DTYPE)
        self._free, self._n_free = np.resize(free, len(self._frames)), len(free)

    # Cuts

    def freeze(self) -> None:
        """Until a place is `passed`, or `thaw`, the frame it holds now is not overwritten."""
        self._unread = np.ones(self._touched, dtype=bool)
        self._is_held = np.zeros(self._touched, dtype=bool)
        self._n_held = 0

    def has_room(self) -> bool:
        """Whether frames that were freed and wait for the reader of a cut are few enough."""
        return self._n_held * self.frame_bytes <= HELD_BYTES

    def passed(self, first: int, end: int) -> None:
        """The reader of the cut has the frames at the places `first`…`end` − 1."""
        if self._unread is None:
            return
        self._unread[first:end] = False
        read = first + np.flatnonzero(self._is_held[first:end])
        self._is_held[first:end] = False
        self._n_held -= len(read)
        self._give_back(read)

    def meta(self) -> dict[str, Any]:
        """What a cut tells beside the frames."""
        writers = [
            [slot, writer.incarnation, writer.first, writer.places.tolist()]
            for slot, writer in sorted(self._writers.items())
        ]
        return {"touched": self._touched, "shape": list(self._shape), "writers": writers}

    def thaw(self) -> None:
        """The cut was read, or given up."""
        self.passed(0, len(self._is_held))
        self._unread = None

    def frames(self, first: int, end: int) -> Array:
        """uint8 [n, H, W] of the places `first`…`end` − 1, not to be written to."""
        return self._frames.part(first, end)

    def begin_restore(self, meta: dict[str, Any]) -> Any:
        """Become empty; the places to write the captured frames into before `end_restore`."""
        touched = meta["touched"]
        if touched > len(self._frames):
            self._frames = make_store(self._compression, touched + SPARE_FRAMES, self._shape)
        self._uses = np.zeros(len(self._frames), dtype=np.int32)
        self._sent.forget(len(self._frames))
        self._touched, self._writers = touched, {}
        self._unread, self._n_held = None, 0
        return self._frames.target(touched)

    def end_restore(self, meta: dict[str, Any], rows: list[Array]) -> None:
        """Count what the restored `rows` and writers name."""
        for slot, incarnation, first, places in meta["writers"]:
            self._writers[slot] = _Writer(incarnation, first, np.array(places, dtype=np.int64))
        self.clear()
        for places in rows:
            self.use(places)
        self._collect_free()

    def check_valid(self, rows: list[Array]) -> None:
        """Raise `InvariantError` unless every frame is counted as often as it is named."""
        wanted = np.zeros_like(self._uses)
        for places in (*rows, *(w.places[w.places != UNKNOWN] for w in self._writers.values())):
            np.add.at(wanted, places.reshape(-1), 1)
        if not np.array_equal(wanted, self._uses):
            raise InvariantError("a frame is counted more or less often than it is named")
        free = self._free[: self._n_free]
        if np.count_nonzero(wanted) != self.size or wanted[free].any():
            raise InvariantError("a frame in use is free, or a free one is lost")
