"""What a learner that keeps frames tells a shard of those it has, so that each comes once.

One per shard, owned by whoever draws from it: the local runtime, the learner's lockstep reader and
its asynchronous line. Answers may be lost, come twice or overtake one another; frames count as had
only when the learner says so of the answer that brought them.
"""

from __future__ import annotations

import collections
import uuid

import numpy as np

from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.pixels.stored_columns import STACKS
from qfleet.common.types import ShardSample

N_SAID = 8
"""Answers that a request tells of. Requests that are lost tell nothing, so each is said by many."""


class FrameReceipts:
    """The learner trains on parts that are not `is_overtaken`, and says so by `take`."""

    def __init__(self, *, by_place: bool) -> None:
        self._name = uuid.uuid4().hex if by_place else ""
        """Empty: stacks come whole, and there is nothing to tell."""
        self._taken: collections.deque[int] = collections.deque(maxlen=N_SAID)
        self._since = np.zeros(0, dtype=np.int64)
        """By place: the first answer that carried the frame which the learner has there."""

    def reader(self) -> FrameReader | None:
        """What the next request says; None asks for whole stacks."""
        return FrameReader(self._name, tuple(self._taken)) if self._name else None

    def is_overtaken(self, part: ShardSample) -> bool:
        """Whether it names a frame in whose place the learner has a newer one.

        That came with a later answer that was taken before it; or another process was the shard.
        """
        news = part.new_frames
        if news is None:
            return False
        if news.reader != self._name:
            return True
        named = np.concatenate([part.columns[name].ravel() for name in STACKS])
        known = named[named < len(self._since)]
        return bool((self._since[known] > news.answer).any())

    def take(self, part: ShardSample) -> None:
        """Its new frames are kept from now on."""
        news = part.new_frames
        if news is None:
            return
        self._taken.append(news.answer)
        if news.n_places > len(self._since):
            more = news.n_places - len(self._since)
            self._since = np.concatenate([self._since, np.zeros(more, dtype=np.int64)])
        self._since[news.places] = news.since
