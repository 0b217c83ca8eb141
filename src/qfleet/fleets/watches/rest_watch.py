"""Shards that no actor writes to any more rest: the learner draws from the others alone.

Called by the asynchronous loop with each answer of the learner. Slot i writes to shard i mod S, and
each shard's limiter keeps the ratio of draws to inserts. Where all slots of a shard are gone for
good (scaled down, given up, or no host has room) its limiter would otherwise hold everybody back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class RestWatch:
    """Tells the learner, again until it says that it knows, and the user once."""

    def __init__(self, n_shards: int) -> None:
        self._n_shards = n_shards
        self._resting: set[int] = set()

    def observe(
        self,
        writers: Iterable[int],
        known: list[int],
        learner: Any,
        tell: Callable[[str], None],
    ) -> None:
        """Take in which slots have an actor that writes, or is about to.

        Args:
            writers: Those slots. Without any, all shards are drawn from as far as they allow.
            known: Shards that the learner lets rest, as it told.
            learner: Its handle.
            tell: Gets what a user should know.
        """
        fed = {slot % self._n_shards for slot in writers}
        resting = set(range(self._n_shards)) - fed if fed else set()
        for shard in sorted(resting - self._resting):
            tell(f"no actor writes to replay shard {shard}: it rests, the others are drawn from")
        for shard in sorted(self._resting - resting):
            tell(f"replay shard {shard} is written to and drawn from again")
        self._resting = resting
        if known != sorted(resting):
            learner.let_rest.remote(sorted(resting))  # not waited for: its next answer tells
