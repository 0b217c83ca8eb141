"""The parameters that an actor holds: the newest ones, and the latest target.

Called by the actor's core. Parameters never go back to an older version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from qfleet.actors.nested_captures import capture_snapshot, get_part, put_part, restore_snapshot
from qfleet.common.q_functions import QFunction
from qfleet.common.types import Capture, ParamsSnapshot, TargetSyncEvent


class _Held(NamedTuple):
    """A snapshot and the function built from it."""

    snapshot: ParamsSnapshot
    q_function: QFunction


class HeldParams:
    """Online and target network of one actor; both are None before the first snapshot."""

    def __init__(self, build_q_function: Callable[[ParamsSnapshot], QFunction]) -> None:
        self._build_q_function = build_q_function
        self._online: _Held | None = None
        self._target: _Held | None = None
        self.stale = 0
        """Snapshots ignored because a newer one was held."""

    @property
    def online(self) -> ParamsSnapshot | None:
        """The newest snapshot."""
        return None if self._online is None else self._online.snapshot

    @property
    def target(self) -> ParamsSnapshot | None:
        """The snapshot of the last target sync taken."""
        return None if self._target is None else self._target.snapshot

    @property
    def online_function(self) -> QFunction:
        """What acts; only after the first snapshot."""
        assert self._online is not None, "the actor checks"
        return self._online.q_function

    def target_function(self, has_target_syncs: bool) -> QFunction:
        """What values next observations: without syncs, or before the first, what acts."""
        held = self._target if has_target_syncs else None
        return self.online_function if held is None else held.q_function

    def take(self, snapshot: ParamsSnapshot) -> TargetSyncEvent | None:
        """Hold `snapshot` from now on; the target sync that this acknowledges.

        A version older than the held one is ignored and counted in `stale`; the held version again
        changes nothing.
        """
        held = self._online
        if held is not None and snapshot.version < held.snapshot.version:
            self.stale += 1
            return None
        if held is None or snapshot.version > held.snapshot.version:
            held = self._online = _Held(snapshot, self._build_q_function(snapshot))
        if not snapshot.is_target_sync or held is self._target:
            return None
        self._target = held
        return TargetSyncEvent(snapshot.learner_step, snapshot.version)

    def capture_into(self, capture: Capture) -> None:
        """Add what is held."""
        for name, held in (("online", self._online), ("target", self._target)):
            if held is not None:
                put_part(capture, name, capture_snapshot(held.snapshot))

    def restore(self, capture: Capture) -> None:
        """Hold what `capture_into` has added."""
        self._online = self._target = None
        for name in ("target", "online"):  # oldest first: versions only grow
            if name in capture.meta:
                self.take(restore_snapshot(get_part(capture, name)))
