"""The rows of a ring as they were at one moment, given out little by little while inserts go on.

Made by `RingStorage.freeze` for a checkpoint. Rows are given out oldest first, the order in which
inserts overwrite them, so that a reader stays ahead of the writer. An insert that is about to
overwrite a row not given out yet puts it into a buffer before (copy on write); `has_room` says
whether that would overrun the buffer, and the insert has to wait for the reader then. So the result
is exact, and a cut never needs more memory than the buffer, however large the ring is.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from qfleet.common.capture_stream import Rows
from qfleet.common.types import Array

BUFFER_BYTES = 16 * 1024 * 1024
"""Room for rows that inserts overwrite before the reader has come to them."""


class FrozenRows:
    """A stream of rows in progress; owned by the storage's process, not thread-safe."""

    def __init__(
        self, columns: Mapping[str, Array], *, size: int, appended: int, capacity: int
    ) -> None:
        self._columns = dict(columns)
        self._size, self._appended, self._capacity = size, appended, capacity
        self._oldest_slot = appended % capacity if size == capacity else 0
        self._passed = 0
        """Rows given out or in the buffer."""
        self._buffer: collections.deque[list[Rows]] = collections.deque()
        self._row_bytes = sum(c.nbytes for c in self._columns.values()) // capacity
        self.buffered_bytes = 0

    def take(self, n_bytes: int) -> list[Rows]:
        """The next rows as copies, about `n_bytes` of them; empty when all were given out."""
        if not self._buffer:
            rows = max(1, n_bytes // self._row_bytes)
            return self._copy(min(rows, self._size - self._passed))
        taken = self._buffer.popleft()
        self.buffered_bytes -= _bytes(taken)
        return taken

    def has_room(self, appended_after: int) -> bool:
        """Whether what appending up to that item key overwrites fits into the buffer.

        An empty buffer takes any insert: one larger than the buffer must come in at some time.
        """
        rows = self._overwritten(appended_after) - self._passed
        fits = self.buffered_bytes + rows * self._row_bytes <= BUFFER_BYTES
        return rows <= 0 or fits or not self._buffer

    def before_append(self, appended_after: int) -> None:
        """Put into the buffer what rows up to item key `appended_after` (exclusive) overwrite."""
        end = self._overwritten(appended_after)
        while self._passed < end:
            copied = self._copy(end - self._passed)
            self._buffer.append(copied)
            self.buffered_bytes += _bytes(copied)

    def release(self) -> None:
        """Nothing more will be asked for: inserts need not keep what they overwrite."""
        self._passed, self.buffered_bytes = self._size, 0
        self._buffer.clear()

    def _overwritten(self, appended_after: int) -> int:
        """How many of the frozen rows are gone once so many keys are given."""
        free_slots = self._capacity - self._size
        return min(self._size, appended_after - self._appended - free_slots)

    def _copy(self, rows: int) -> list[Rows]:
        """The next at most `rows` rows that lie side by side, of each column."""
        if rows == 0:
            return []
        slot = (self._oldest_slot + self._passed) % self._size
        stop = min(slot + rows, self._size)
        self._passed += stop - slot
        return [Rows(n, slot, column[slot:stop].copy()) for n, column in self._columns.items()]


def _bytes(rows: list[Rows]) -> int:
    return sum(part.values.nbytes for part in rows)
