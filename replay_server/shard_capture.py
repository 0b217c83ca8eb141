"""A replay shard's state on its way into a checkpoint and back, message by message.

Made by `ReplayShard.freeze` and `ReplayShard.restoring`; the Ray shell and the local runtime pull
and push the messages. Neither direction holds the shard's rows a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from qfleet.common.capture_stream import (
    PIECE_BYTES,
    ArrayFiller,
    CaptureHead,
    Rows,
    Shapes,
    decode_head,
    decode_rows,
    encode_head,
    encode_rows,
    messages,
    restoring,
    rows_of,
    shapes_of,
)
from qfleet.common.errors import CheckpointError
from qfleet.common.types import Capture, Columns
from qfleet.replay_server.chunk_ledger import ChunkLedger
from qfleet.replay_server.framed_rows import FramedRows
from qfleet.replay_server.sampler import Sampler
from qfleet.replay_server.shard_counters import ShardCounters
from qfleet.replay_server.storage import RingStorage

_SAMPLER = "sampler."


class Frozen(Protocol):
    """A part of a shard's state as it was at one moment."""

    def take(self, n_bytes: int) -> list[Rows]:
        """What comes next, about `n_bytes` of it; empty when all was given out."""
        ...

    def release(self) -> None:
        """Nothing more will be asked for."""
        ...


class FrozenCopies:
    """Arrays that were copied at once."""

    def __init__(self, arrays: Columns) -> None:
        self._rows = [part for name, array in arrays.items() for part in rows_of(name, array)]

    def take(self, n_bytes: int) -> list[Rows]:
        """See `Frozen`."""
        return [self._rows.pop(0)] if self._rows else []

    def release(self) -> None:
        """See `Frozen`."""
        self._rows = []


class FrozenShard:
    """The state of a shard at one moment; owned by the shard's owner.

    `take` and `release` must not run beside the shard's other methods; `head` may.
    """

    def __init__(self, meta: dict[str, Any], shapes: Shapes, parts: Iterable[Frozen]) -> None:
        self._meta, self._shapes, self._parts = meta, shapes, list(parts)

    def head(self) -> bytes:
        """The stream's first message."""
        return encode_head(self._meta, self._shapes)

    def take(self) -> list[Rows]:
        """What comes next, about `PIECE_BYTES` of it; empty when all was given out."""
        while self._parts:
            rows = self._parts[0].take(PIECE_BYTES)
            if rows:
                return rows
            self._parts.pop(0).release()
        return []

    def release(self) -> None:
        """Nothing more will be asked for: inserts need not keep what they overwrite."""
        while self._parts:
            self._parts.pop().release()

    def pieces(self) -> Iterator[bytes]:
        """The whole stream, when nothing else happens to the shard meanwhile."""
        yield self.head()
        while rows := self.take():
            yield b"".join(map(encode_rows, rows))


class ShardParts(NamedTuple):
    """What a shard consists of."""

    shard: int
    storage: RingStorage
    framed: FramedRows | None
    sampler: Sampler
    ledger: ChunkLedger
    counters: ShardCounters


def freeze_parts(parts: ShardParts, contents: bool) -> FrozenShard:
    """The state as of now; see `ReplayShard.freeze`."""
    sampler = parts.sampler.capture(contents)
    meta = {
        "shard": parts.shard,
        "counters": parts.counters.capture(),
        "ledger": parts.ledger.capture(),
        "storage": parts.storage.capture_meta(contents),
        "frames": parts.framed.pool.meta() if contents and parts.framed is not None else None,
        "sampler": sampler.meta,
    }
    weights = {_SAMPLER + name: array for name, array in sampler.arrays.items()}
    frozen: list[Frozen] = [FrozenCopies(weights)]
    if contents and parts.framed is not None:
        frozen.insert(0, parts.framed.freeze())
    if contents:  # rows first: they are soon read, and inserts then wait for frames alone
        frozen.insert(0, parts.storage.freeze())
    return FrozenShard(meta, _shapes(parts, meta) | shapes_of(weights), frozen)


def _shapes(parts: ShardParts, meta: dict[str, Any]) -> Shapes:
    """Of the arrays that a cut with this meta consists of, without the sampler's."""
    storage, frames = meta["storage"], meta["frames"]
    shapes = parts.storage.shapes(storage["size"]) if storage["contents"] else {}
    if parts.framed is not None and frames is not None:
        shapes |= parts.framed.shapes(frames["touched"])
    return shapes


class RestoringShard:
    """The inverse: `take` the stream in parts of whole messages, then `end`.

    Between the first message and `end` the shard is empty.
    """

    def __init__(self, parts: ShardParts) -> None:
        self._parts = parts
        self._what = f"the state of replay shard {parts.shard}"
        self._meta: dict[str, Any] | None = None
        self._arrays: Columns = {}
        self._filler = ArrayFiller({})
        self._early: dict[int, bytes] = {}
        self._next_number = 0

    def take_numbered(self, number: int, piece: bytes) -> None:
        """A piece that may have overtaken others, or come twice; it waits for its turn."""
        if number >= self._next_number:
            self._early[number] = piece
        while self._next_number in self._early:
            self.take(self._early.pop(self._next_number))
            self._next_number += 1

    def take(self, piece: bytes | memoryview) -> None:
        """The next messages.

        Raises:
            CheckpointError: naming all that differs, before anything was changed; or that the
                stream is damaged.
        """
        with restoring(self._what):
            for message in messages(piece):
                if self._meta is None:
                    self._begin(decode_head(message))
                else:
                    self._filler.put(decode_rows(message))

    def _begin(self, head: CaptureHead) -> None:
        parts, meta = self._parts, head.meta
        shapes, weights = _split(head.shapes)
        differing, here = parts.storage.differences(meta["storage"]), parts.shard
        if meta["shard"] != here:
            differing.insert(0, f"shard is {meta['shard']}, here {here}")
        if not differing and shapes != (wanted := _shapes(parts, meta)):
            differing.append(f"arrays are {shapes}, must be {wanted}")
        if differing:
            raise CheckpointError(f"replay shard {here} does not fit: {'; '.join(differing)}")
        parts.sampler.check_fits(meta["sampler"], weights)
        self._arrays = parts.storage.restored_arrays(meta["storage"])
        if parts.framed is not None:
            self._arrays |= parts.framed.begin_restore(meta["frames"])
        for name, (dtype, shape) in weights.items():
            self._arrays[_SAMPLER + name] = np.empty(shape, dtype)
        self._filler, self._meta = ArrayFiller(self._arrays), meta

    def end(self) -> None:
        """The stream is over: the shard becomes the captured one; without contents an empty one.

        An empty one first fills to `min_size` again, and its limiter counts from there: neither a
        burst of samples nor a standstill follows. Keys of forgotten transitions stay refused.

        Raises:
            CheckpointError: when rows are missing or the state is damaged.
        """
        parts, meta = self._parts, self._meta
        with restoring(self._what):
            self._filler.check_complete()
            if meta is None:
                raise ValueError("it is empty")
            parts.counters.restore(meta["counters"])
            parts.sampler.restore(Capture(meta["sampler"], _split(self._arrays)[1]))
            parts.ledger.restore(meta["ledger"])
            parts.storage.end_restore(meta["storage"])
            if parts.framed is not None:
                parts.framed.end_restore(meta["frames"])
            parts.storage.check_counters()
            parts.sampler.check_valid(parts.storage.size)
            parts.ledger.check_valid()
            if not meta["storage"]["contents"]:
                parts.counters.limiter_inserted_base = parts.counters.inserted
                parts.counters.limiter_sampled_base = parts.counters.sampled


def _split(named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A capture's arrays without the sampler's, and the sampler's by its own names."""
    others = {name: value for name, value in named.items() if not name.startswith(_SAMPLER)}
    return others, {n.removeprefix(_SAMPLER): v for n, v in named.items() if n not in others}
