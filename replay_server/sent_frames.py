"""Which of a shard's frames its reader has, when that is one who keeps frames.

Owned by a `FramePool`. A frame counts as had when it came with an answer that the reader says it
took, and was not overwritten since. Until then it is sent with all draws that name it, because an
answer may be lost or let go; so no answer leans on one that never came.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.types import Array

MAX_UNDER_WAY = 16
"""Answers of which the reader has not said whether it took them; the oldest is given up above."""
_HAD = -1


class Answer(NamedTuple):
    """What goes with draws by place."""

    number: int
    places: Array
    """int64 [n], each once: whose frames go with it."""
    since: Array
    """int64 [n]: number of the answer that was the first to carry the frame."""


class SentFrames:
    """Not thread-safe; of one reader at a time, and a new one has nothing."""

    def __init__(self, n_places: int) -> None:
        self._since = np.zeros(n_places, dtype=np.int64)
        """By place: 0 never sent, `_HAD`, or the first answer that carried what lies there now."""
        self._reader = ""
        self._n_answers = 0
        self._under_way: dict[int, Array] = {}
        """Places whose frames an answer carries, by its number."""

    def overwritten(self, places: Array) -> None:
        """Other frames lie at `places` int64 [n] from now on."""
        if self._reader:  # else nothing was sent, and the pages of the array stay untouched
            self._since[places] = 0

    def grow(self, n: int) -> None:
        """There are `n` more places."""
        self._since = np.concatenate([self._since, np.zeros(n, dtype=np.int64)])

    def forget(self, n_places: int) -> None:
        """There are so many places, and the reader has none of what lies there."""
        self._since = np.zeros(n_places, dtype=np.int64)
        self._under_way = {}

    def answer(self, reader: FrameReader, places: Array) -> Answer:
        """Of the frames at `places` int32 [n] those that the reader is not known to have."""
        if reader.name != self._reader:
            self.forget(len(self._since))
            self._reader = reader.name
        for number in reader.received:
            self._received(number)
        sent = np.unique(places[self._since[places] != _HAD]).astype(np.int64)
        self._n_answers += 1
        since = self._since[sent]
        since[since == 0] = self._n_answers
        self._since[sent] = since
        self._under_way[self._n_answers] = sent
        if len(self._under_way) > MAX_UNDER_WAY:
            del self._under_way[min(self._under_way)]
        return Answer(self._n_answers, sent, since)

    def _received(self, number: int) -> None:
        came = self._under_way.pop(number, np.empty(0, dtype=np.int64))
        since = self._since[came]  # above the number: that answer carried what lay there before
        self._since[came[(since > 0) & (since <= number)]] = _HAD
