"""Parameter snapshots to the actors, each once to every actor, and their acknowledgements.

Called by the learner's Ray shell.
"""

from __future__ import annotations

import collections
from typing import Any

import ray

from qfleet.common.messages import encode_snapshot
from qfleet.common.types import ParamsSnapshot

ANSWER_TIMEOUT_S = 60.0
MAX_UNACKNOWLEDGED_SNAPSHOTS = 4
"""A further one would only queue behind these; target syncs are sent all the same."""
INLINE_SNAPSHOT_BYTES = 100_000
"""Ray sends arguments up to this size inside the call; larger ones go through its object store."""


class SnapshotBroadcaster:
    """Sends each snapshot once to every actor and keeps the log of acknowledged target syncs."""

    def __init__(self) -> None:
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, collections.deque[Any]] = {}
        self.acknowledged_target_syncs: dict[int, list[int]] = {}
        self.skipped = 0

    def set_actors(self, actors: dict[int, Any]) -> None:
        """The living actors by slot; acknowledgements of the others are forgotten."""
        for slot in list(self._pending):
            if slot not in actors or actors[slot] is not self._actors.get(slot):
                del self._pending[slot]
        self._actors = dict(actors)

    def send(self, snapshot: ParamsSnapshot) -> None:
        """To all actors; one that is far behind skips this one unless it is a target sync.

        Acknowledgements are asked for only where one decides that: the question costs more than a
        compiled update.
        """
        if any(len(p) >= MAX_UNACKNOWLEDGED_SNAPSHOTS for p in self._pending.values()):
            self.collect()
        payload: Any = encode_snapshot(snapshot)
        if len(payload) > INLINE_SNAPSHOT_BYTES:
            payload = ray.put(payload)
        for slot, actor in self._actors.items():
            pending = self._pending.setdefault(slot, collections.deque())
            if len(pending) >= MAX_UNACKNOWLEDGED_SNAPSHOTS and not snapshot.is_target_sync:
                self.skipped += 1
                continue
            pending.append(actor.set_params.remote(payload))

    @property
    def silent_slots(self) -> list[int]:
        """Slots with snapshots sent and not acknowledged yet."""
        return sorted(slot for slot, pending in self._pending.items() if pending)

    def collect(self, timeout_s: float = 0.0) -> None:
        """Take acknowledgements that have come; with a timeout, wait that long for each next one.

        One question to Ray for all that is on its way to all actors. Each actor's are taken in the
        order in which they were sent: Ray may tell of a later one first.
        """
        while any(self._pending.values()):
            if timeout_s:
                asked, wanted = [pending[0] for pending in self._pending.values() if pending], 1
            else:
                asked = [ref for pending in self._pending.values() for ref in pending]
                wanted = len(asked)
            ready, _ = ray.wait(asked, num_returns=wanted, timeout=timeout_s)
            if not ready:
                return
            acknowledged: list[Any] = []
            for pending in self._pending.values():
                while pending and pending[0] in ready:
                    acknowledged.append(pending.popleft())
            self._note(acknowledged)
            if not timeout_s:
                return

    def _note(self, acknowledged: list[Any]) -> None:
        """Log the target syncs among them; an actor that died is the driver's matter."""
        try:
            answers = ray.get(acknowledged, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            if len(acknowledged) > 1:
                for ref in acknowledged:
                    self._note([ref])
            return
        for slot, version, is_target in answers:
            if is_target:
                self.acknowledged_target_syncs.setdefault(slot, []).append(version)
