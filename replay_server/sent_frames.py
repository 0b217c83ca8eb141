"""Which of a shard's frames its reader has, when that is one who keeps frames.

Owned by a `FramePool`. A frame counts as had when it came with an answer that the reader says it
took, and was not overwritten since. Until then it is sent with all draws that name it, because an
answer may be lost or let go; so no answer leans on one that never came.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.types import Array

MAX_UNDER_WAY = 16
"""Answers of which the reader has not said whether it took them; the oldest is given up above."""
_HAD = -1


class SentFrames:
    """Not thread-safe; of one reader at a time, and a new one has nothing."""

    def __init__(self, n_places: int) -> None:
        self._state = np.zeros(n_places, dtype=np.int64)
        """By place: 0 never sent, `_HAD`, or the number of the newest answer that carries it."""
        self._reader = ""
        self._n_answers = 0
        self._under_way: dict[int, Array] = {}
        """Places whose frames an answer carries, by its number."""

    def overwritten(self, places: Array) -> None:
        """Other frames lie at `places` from now on."""
        if self._reader:  # else nothing was sent, and the pages of the array stay untouched
            self._state[places] = 0

    def grow(self, n: int) -> None:
        """There are `n` more places."""
        self._state = np.concatenate([self._state, np.zeros(n, dtype=np.int64)])

    def forget(self, n_places: int) -> None:
        """There are so many places, and the reader has none of what lies there."""
        self._state = np.zeros(n_places, dtype=np.int64)
        self._under_way = {}

    def answer(self, reader: FrameReader, places: Array) -> tuple[int, Array]:
        """A new answer's number and those of `places` that go with it, int64 [n], each once."""
        if reader.name != self._reader:
            self.forget(len(self._state))
            self._reader = reader.name
        for number in reader.received:
            came = self._under_way.pop(number, np.empty(0, dtype=np.int64))
            self._state[came[self._state[came] == number]] = _HAD
        sent = np.unique(places[self._state[places] != _HAD]).astype(np.int64)
        self._n_answers += 1
        self._state[sent] = self._n_answers
        self._under_way[self._n_answers] = sent
        if len(self._under_way) > MAX_UNDER_WAY:
            del self._under_way[min(self._under_way)]
        return self._n_answers, sent
