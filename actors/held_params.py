"""The parameters that an actor holds: the newest ones, and the latest target.

Called by the actor's core; refuses what cannot be this network's before anything acts with it.
Neither of the two ever goes back to an older version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qfleet.actors.nested_captures import capture_snapshot, get_part, put_part, restore_snapshot
from qfleet.common.arrays_check import check_arrays
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.common.q_functions import NetworkFunction
from qfleet.common.types import Capture, EnvironmentSpec, ParamsSnapshot, TargetSyncEvent


class _Held(NamedTuple):
    """A snapshot and the function built from it."""

    snapshot: ParamsSnapshot
    q_function: NetworkFunction


class HeldParams:
    """Online and target network of one actor; both are None before the first snapshot."""

    def __init__(
        self,
        slot: int,
        spec: EnvironmentSpec,
        build_q_function: Callable[[ParamsSnapshot], NetworkFunction],
    ) -> None:
        self._slot, self._spec, self._build_q_function = slot, spec, build_q_function
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
    def online_function(self) -> NetworkFunction:
        """What acts; only after the first snapshot."""
        assert self._online is not None, "the actor checks"
        return self._online.q_function

    def target_function(self, has_target_syncs: bool) -> NetworkFunction:
        """What values next observations: without syncs, or before the first, what acts."""
        held = self._target if has_target_syncs else None
        return self.online_function if held is None else held.q_function

    def take(self, snapshot: ParamsSnapshot) -> TargetSyncEvent | None:
        """See `Actor.set_params`."""
        version = snapshot.version
        is_latest = self.online is None or version > self.online.version
        is_target = snapshot.is_target_sync and (
            self.target is None or version > self.target.version
        )
        held = self._online
        if held is None or version != held.snapshot.version:
            if not is_latest and not is_target:
                self.stale += 1
                return None
            held = self._checked(snapshot)
        if is_latest:
            self._online = held
        if not is_target:
            return None
        self._target = held
        return TargetSyncEvent(snapshot.learner_step, version)

    def _checked(self, snapshot: ParamsSnapshot) -> _Held:
        """The snapshot with its Q-function, if it is one that this network can have.

        The first one must answer; later ones have its names, dtypes and shapes.
        """
        who = f"actor {self._slot} refuses parameters version {snapshot.version}"
        like = None if self.online is None else self.online.arrays
        check_arrays(snapshot.arrays, like, who)
        try:
            q_function = self._build_q_function(snapshot)
            if like is None:
                zeros = np.zeros((1, *self._spec.observation_shape), self._spec.observation_dtype)
                answered = q_function.q_values(zeros).shape
                if answered != (1, self._spec.n_actions):
                    raise ValueError(f"they answer {list(answered)}")
        except (CheckpointError, KeyError, ValueError, RuntimeError) as error:
            raise InvariantError(f"{who}: they are not this network's: {error!r}") from error
        return _Held(snapshot, q_function)

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
