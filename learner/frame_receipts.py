"""What a learner that keeps frames tells a shard of those it has, so that each comes once.

One per shard, owned by whoever draws from it: the local runtime, the learner's lockstep reader and
its asynchronous line. Answers may be lost, come twice or overtake one another; frames count as had
only when the learner says so of the answer that brought them.
"""

from __future__ import annotations

import collections
import uuid

from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.types import ShardSample

N_SAID = 8
"""Answers that a request tells of. Requests that are lost tell nothing, so each is said by many."""


class FrameReceipts:
    """Invariant: answers are taken in the order in which the shard made their draws."""

    def __init__(self, *, by_place: bool) -> None:
        self._name = uuid.uuid4().hex if by_place else ""
        """Empty: stacks come whole, and there is nothing to tell."""
        self._taken: collections.deque[int] = collections.deque(maxlen=N_SAID)

    def reader(self) -> FrameReader | None:
        """What the next request says; None asks for whole stacks."""
        return FrameReader(self._name, tuple(self._taken)) if self._name else None

    def is_overtaken(self, part: ShardSample) -> bool:
        """Whether it names frames that may have been replaced where the learner keeps them.

        So it is after a later answer was taken, and when another process was the shard.
        """
        newest = self._taken[-1] if self._taken else 0
        news = part.new_frames
        return news is not None and (news.reader != self._name or news.answer <= newest)

    def take(self, part: ShardSample) -> None:
        """Its new frames are kept from now on."""
        if part.new_frames is not None:
            self._taken.append(part.new_frames.answer)
