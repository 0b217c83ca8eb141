"""The rows of a ring as they were at one moment, copied little by little while inserts go on.

Made by `RingStorage.freeze` for a checkpoint. Rows are copied oldest first; an insert that is about
to overwrite a row not copied yet copies it before (copy on write), so the result is always exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.types import Array, Columns


class FrozenRows:
    """A copy in progress; owned by the storage's process, not thread-safe.

    `copies` are in ring layout, `[size, …]` each, and complete once `is_complete`.
    """

    def __init__(
        self, columns: Mapping[str, Array], *, size: int, appended: int, capacity: int
    ) -> None:
        self._columns = dict(columns)
        self._size, self._appended, self._capacity = size, appended, capacity
        self._oldest_slot = appended % capacity if size == capacity else 0
        self._copied = 0
        self.copies: Columns = {
            name: np.empty((size, *column.shape[1:]), dtype=column.dtype)
            for name, column in self._columns.items()
        }

    @property
    def is_complete(self) -> bool:
        """Whether every row has been copied."""
        return self._copied == self._size

    def advance(self, rows: int) -> None:
        """Copy the next `rows` rows, or those that are left."""
        self._copy_through(self._copied + rows)

    def before_append(self, appended_after: int) -> None:
        """Copy what rows up to item key `appended_after` (exclusive) will overwrite."""
        free_slots = self._capacity - self._size
        self._copy_through(appended_after - self._appended - free_slots)

    def _copy_through(self, rows: int) -> None:
        """Copy the oldest `rows` rows as far as that was not done yet."""
        end = min(rows, self._size)
        while self._copied < end:
            slot = (self._oldest_slot + self._copied) % self._size
            stop = min(slot + end - self._copied, self._size)
            for name, column in self._columns.items():
                self.copies[name][slot:stop] = column[slot:stop]
            self._copied += stop - slot
