"""A ring of transitions in preallocated columns: the newest `capacity` of them stay.

Owned by a replay shard. It knows nothing of sampling: slots come in, rows go out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qfleet.common.arrays_check import check_columns
from qfleet.common.capture_stream import Shapes, shapes_of
from qfleet.common.errors import InvariantError
from qfleet.common.types import Array, Columns, ColumnSpec
from qfleet.replay_server.frozen_rows import FrozenRows

COLUMN_PREFIX = "column."
_INSERTED_AT_S = "inserted_at_s"


class RingStorage:
    """Columns of `capacity` rows, written in a ring.

    A row's *item key* is its insertion number: it lies at slot `key % capacity` in generation
    `key // capacity`, and a key is never given twice. The rows held are those of the newest `size`
    keys, and they always fill the slots 0…size−1: `clear` moves on to the next whole generation.
    Not thread-safe.
    """

    def __init__(self, specs: tuple[ColumnSpec, ...], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.specs = specs
        self.capacity = capacity
        self._columns: Columns = {
            spec.name: np.zeros((capacity, *spec.shape), dtype=spec.dtype) for spec in specs
        }
        self._inserted_at_s = np.zeros(capacity)
        self._size = 0
        self._appended = 0
        self._frozen: FrozenRows | None = None

    @property
    def size(self) -> int:
        """Rows held."""
        return self._size

    @property
    def oldest_slot(self) -> int:
        """Where the oldest row lies, if there is one."""
        return self._appended % self.capacity if self._size == self.capacity else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all columns, its time of insertion included."""
        columns = sum(column.nbytes for column in self._columns.values())
        return (columns + self._inserted_at_s.nbytes) // self.capacity

    @property
    def appended(self) -> int:
        """The next item key: rows appended so far, plus keys that `clear` skipped."""
        return self._appended

    @property
    def inserted_at_s(self) -> Array:
        """float64 [capacity]: when each slot was written, as a view."""
        return self._inserted_at_s

    def append(self, columns: Mapping[str, Array], now_s: float) -> Array:
        """Write n rows over the oldest ones and return their item keys, int64 [n].

        When n exceeds the capacity only the last `capacity` rows remain; the others' keys are
        given all the same.

        Raises:
            InvariantError: when `columns` are not of this storage's specs; nothing was written.
        """
        n = len(next(iter(columns.values())))
        check_columns(columns, self.specs, n)
        if self._frozen is not None:
            self._frozen.before_append(self._appended + n)
        keys = np.arange(self._appended, self._appended + n)
        skipped = max(0, n - self.capacity)
        start = (self._appended + skipped) % self.capacity
        until_end = min(n - skipped, self.capacity - start)
        parts = (
            (slice(start, start + until_end), slice(skipped, skipped + until_end)),
            (slice(0, n - skipped - until_end), slice(skipped + until_end, n)),
        )
        for name, column in self._columns.items():
            for slots, rows in parts:
                column[slots] = columns[name][rows]
        for slots, _ in parts:
            self._inserted_at_s[slots] = now_s
        self._appended += n
        self._size = min(self.capacity, self._size + n)
        return keys

    def slots_overwritten_by(self, n: int) -> Array:
        """Slots of the rows that appending n rows would overwrite, int64 [≤ capacity]."""
        first = self._appended + max(0, n - self.capacity)
        slots = np.arange(first, self._appended + n) % self.capacity
        return slots[slots < self._size]

    def column(self, name: str) -> Array:
        """A whole column `[capacity, ...]` as a view; rows from `size` on mean nothing."""
        return self._columns[name]

    def keys_at(self, slots: Array) -> Array:
        """Item keys of the rows at `slots`, int64 [n]; the slots must be below `size`."""
        head = self._appended % self.capacity
        keys = slots + (self._appended - head)
        if self._size == self.capacity:
            keys -= self.capacity * (slots >= head)  # not yet overwritten in this generation
        return np.asarray(keys)

    def slots_of(self, keys: Array) -> Array:
        """Slots of the rows with current `keys`, int64 [n]."""
        slots = keys - (self._appended - self._appended % self.capacity)
        slots += self.capacity * (slots < 0)
        return np.asarray(slots)

    def is_current(self, keys: Array) -> Array:
        """Whether the row of each key is still here, bool [n]."""
        return np.asarray((keys >= self._appended - self._size) & (keys < self._appended))

    def gather(self, slots: Array) -> Columns:
        """Copies of the rows at `slots`, each column `[n, ...]`."""
        # Slots come from our own samplers; "clip" spares the copy that "raise" makes of them.
        return {name: column.take(slots, 0, mode="clip") for name, column in self._columns.items()}

    def clear(self) -> None:
        """Forget all rows; no later row gets the key of a forgotten one."""
        self._size = 0
        self._appended += -self._appended % self.capacity

    def has_room(self, n: int) -> bool:
        """Whether n rows can be appended without overrunning the buffer of a cut under way."""
        return self._frozen is None or self._frozen.has_room(self._appended + n)

    def freeze(self) -> FrozenRows:
        """The rows as they are now, to be given out while inserts go on.

        One at a time: an earlier one is given up.
        """
        self._frozen = FrozenRows(
            self._arrays(self.capacity),
            size=self._size,
            appended=self._appended,
            capacity=self.capacity,
        )
        return self._frozen

    def _arrays(self, rows: int) -> Columns:
        """All columns by their names in a capture, as views of the first `rows` slots."""
        columns = {COLUMN_PREFIX + name: column[:rows] for name, column in self._columns.items()}
        return {**columns, _INSERTED_AT_S: self._inserted_at_s[:rows]}

    def shapes(self, rows: int) -> Shapes:
        """What `freeze` gives out when so many rows are held."""
        return shapes_of(self._arrays(rows))

    def capture_meta(self, contents: bool) -> dict[str, Any]:
        """The counters that go with the rows, or without them."""
        return {
            "capacity": self.capacity,
            "specs": _listed(self.specs),
            "size": self._size,
            "appended": self._appended,
            "contents": contents,
        }

    def differences(self, meta: Mapping[str, Any]) -> list[str]:
        """What keeps a capture from being restored here, one phrase each; empty when nothing."""
        ours = {"capacity": self.capacity, "specs": _listed(self.specs)}
        return [
            f"{key} is {meta.get(key)}, here {value}"
            for key, value in ours.items()
            if meta.get(key) != value
        ]

    def restored_arrays(self, meta: Mapping[str, Any]) -> Columns:
        """Become empty; the arrays to write the rows of a capture without `differences` into."""
        self._size, self._frozen = 0, None
        return self._arrays(meta["size"]) if meta["contents"] else {}

    def end_restore(self, meta: Mapping[str, Any]) -> None:
        """The rows are there: take the counters; without contents, stay empty and go on in keys."""
        self._size, self._appended = meta["size"], meta["appended"]
        if not meta["contents"]:
            self.clear()

    def check_valid(self) -> None:
        """Raise `InvariantError` unless counters and columns agree.

        Raises:
            InvariantError: naming what does not.
        """
        check_columns(self._columns, self.specs, self.capacity)
        self.check_counters()
        keys = self.keys_at(np.arange(self._size))
        if not self.is_current(keys).all() or len(np.unique(keys)) != self._size:
            raise InvariantError("keys of the rows held are not the newest ones")

    def check_counters(self) -> None:
        """The part of `check_valid` that costs nothing.

        Raises:
            InvariantError: naming what does not agree.
        """
        if not 0 <= self._size <= min(self.capacity, self._appended):
            raise InvariantError(f"size {self._size} with {self._appended} keys given")
        if self._size < self.capacity and self._appended % self.capacity != self._size:
            raise InvariantError(f"{self._size} rows do not end at key {self._appended}")


def _listed(specs: tuple[ColumnSpec, ...]) -> list[list[Any]]:
    """Specs as JSON reads them back."""
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]
