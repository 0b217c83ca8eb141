"""The replay shards as the learner sees them in lockstep: every wait has a timeout.

Called by the learner's Ray shell.
"""

from __future__ import annotations

from typing import Any

import ray

from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import encode_priority_update
from qfleet.common.sample_message import decode_shard_sample
from qfleet.common.types import PriorityUpdate, ReplayStats, ShardSample
from qfleet.learner.frame_receipts import FrameReceipts

ANSWER_TIMEOUT_S = 60.0


class RemoteReplay:
    """`ReplayReader` over shard handles, every wait with a timeout that names the shard."""

    def __init__(self, shards: list[Any], *, by_place: bool = False) -> None:
        self.shards = shards
        self._receipts = [FrameReceipts(by_place=by_place) for _ in shards]

    def _get(self, refs: list[Any], what: str) -> list[Any]:
        try:
            return list(ray.get(refs, timeout=ANSWER_TIMEOUT_S))
        except ray.exceptions.GetTimeoutError as error:
            raise WaitTimeoutError(
                f"learner waited {ANSWER_TIMEOUT_S:.0f} s for the replay server to {what}"
            ) from error

    def stats(self) -> list[ReplayStats]:
        """See `ReplayReader`."""
        answers = self._get([s.stats.remote() for s in self.shards], "report its counters")
        return [ReplayStats(*answer) for answer in answers]

    def sample(self, draws: list[int]) -> list[ShardSample]:
        """See `ReplayReader`; does not pass the rate limiter: lockstep decides by itself."""
        readers = [receipts.reader() for receipts in self._receipts]
        asked = zip(self.shards, draws, readers, strict=True)
        refs = [shard.draw.remote(n, reader) for shard, n, reader in asked if n]
        parts = [decode_shard_sample(data) for data in self._get(refs, "answer a sample")]
        for part in parts:
            self._receipts[part.shard].take(part)  # the learner trains on it before it draws again
        return parts

    def update_priorities(self, updates: dict[int, PriorityUpdate]) -> None:
        """See `ReplayReader`."""
        refs = [
            self.shards[shard].update_priorities.remote(encode_priority_update(update))
            for shard, update in updates.items()
        ]
        self._get(refs, "apply new priorities")
