"""Parameter snapshots to the replay shards, each once, from a thread of its own.

Called by the learner's Ray shell. Actors fetch from their shard what they do not hold, so that what
publishing costs the learner does not depend on how many there are, and nobody has to be told when
one dies or is added. Source: Acme's `VariableSource` (Hoffman et al. 2020), whose actors pull.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from qfleet.common.messages import encode_snapshot
from qfleet.common.patience import Patience
from qfleet.common.types import ParamsOffer, ParamsSnapshot

INLINE_SNAPSHOT_BYTES = 100_000
"""Ray sends arguments up to this size inside the call; larger ones go through its object store."""
PERIOD_S = 0.02
"""Between two announcements, and between two looks at calls under way: a compiled block would else
share its time with a thread that encodes versions which nobody acts with."""
LEAST_SILENCE_S = 0.1
SILENCE_S = 1.0
"""A shard that has not confirmed for longer than usual, between these bounds, is told again: the
call may be lost."""


class _Told:
    """What one shard was told, and whether it has confirmed."""

    def __init__(self, shard: Any) -> None:
        self.shard = shard
        self.version = 0
        self.ref: Any = None
        self.since_s = 0.0
        self.patience = Patience(LEAST_SILENCE_S, SILENCE_S, SILENCE_S)
        self.silence_s = self.patience.seconds
        """After which the call under way is taken for lost."""
        self.is_dead = False

    def awaits(self, version: int) -> bool:
        """Whether it is to be told of `version` now."""
        return self.version < version and self.ref is None and not self.is_dead


class SnapshotPublisher:
    """Encodes the newest snapshots and announces them to every shard.

    Kept are at most three: the latest, the target and the one to evaluate. A version that is
    replaced before a shard could take it, or within `PERIOD_S`, is never announced. `publish` only
    hands over; everything else happens in a thread that lives from `start` to `stop`. Without it,
    in lockstep, `offer` encodes for the caller.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        """Guards what follows."""
        self._latest: ParamsSnapshot | None = None
        self._target: ParamsSnapshot | None = None
        self._evaluated: ParamsSnapshot | None = None
        self._due: tuple[int, Any] = (0, None)
        self._told: list[_Told] = []
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._announced_s = 0.0
        self._encoding = threading.Lock()
        self._payloads: dict[int, Any] = {}

    def set_shards(self, shards: Sequence[Any]) -> None:
        """All shards, in order; each is told what is current."""
        with self._changed:
            self._told = [_Told(shard) for shard in shards]
            self._changed.notify_all()

    def replace_shard(self, index: int, shard: Any) -> None:
        """Another process serves shard `index`: it is told what is current."""
        with self._changed:
            self._told[index] = _Told(shard)
            self._changed.notify_all()

    def start(self) -> None:
        """Begin to announce."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="publisher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Announce nothing more, and let nobody wait for an evaluation any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread; what fell due for an evaluation is there afterwards."""
        self.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is None:
            self._take_evaluated()

    def publish(self, snapshots: Sequence[ParamsSnapshot], *, evaluate: bool = False) -> None:
        """Hand over new snapshots, oldest first; the newest is to be evaluated if so asked.

        Raises:
            Exception: what ended the publishing thread.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            for snapshot in snapshots:
                self._latest = snapshot
                if snapshot.is_target_sync:
                    self._target = snapshot
            if evaluate:
                self._evaluated = self._latest
            self._changed.notify_all()

    def offer(self) -> ParamsOffer:
        """What is current, whole."""
        with self._changed:
            latest, target = self._latest, self._target
        if latest is None:
            return ParamsOffer()
        if target is None or target is latest:
            version = 0 if target is None else target.version
            return ParamsOffer(latest.version, version, self._payload(latest))
        return ParamsOffer(
            latest.version, target.version, self._payload(latest), self._payload(target)
        )

    def await_evaluation(self, timeout_s: float, after_version: int) -> tuple[int, Any] | None:
        """Version and payload of the newest snapshot to evaluate, if above `after_version`.

        None when none falls due in time, or when publishing ends meanwhile.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._due[0] > after_version or self._is_closed, timeout_s
            )
            return self._due if self._due[0] > after_version else None

    def _payload(self, snapshot: ParamsSnapshot) -> Any:
        """Encoded once, and put into the object store once."""
        with self._encoding:
            if snapshot.version not in self._payloads:
                data: Any = encode_snapshot(snapshot)
                if len(data) > INLINE_SNAPSHOT_BYTES:
                    data = [ray.put(data)]
                kept = [s.version for s in (self._latest, self._target, self._evaluated) if s]
                self._payloads = {v: p for v, p in self._payloads.items() if v in kept}
                self._payloads[snapshot.version] = data
            return self._payloads[snapshot.version]

    def _serve(self) -> None:
        try:
            while not self._is_closed:
                offer = self.offer()
                self._take_evaluated()
                waits = self._tell(offer)
                with self._changed:
                    news = partial(self._has_news, offer)
                    self._changed.wait_for(news, PERIOD_S if waits else None)
                    rest_s = self._announced_s + PERIOD_S - time.monotonic()
                    self._changed.wait_for(lambda: self._is_closed, max(0.0, rest_s))
        except BaseException as error:
            self._error = error
            raise

    def _take_evaluated(self) -> None:
        snapshot = self._evaluated
        if snapshot is not None and snapshot.version != self._due[0]:
            payload = self._payload(snapshot)
            with self._changed:
                self._due = (snapshot.version, payload)
                self._changed.notify_all()

    def _has_news(self, offer: ParamsOffer) -> bool:
        if self._is_closed:
            return True
        if self._evaluated is not None and self._evaluated.version != self._due[0]:
            return True
        is_newer = self._latest is not None and self._latest.version > offer.version
        return is_newer or any(told.awaits(offer.version) for told in self._told)

    def _tell(self, offer: ParamsOffer) -> bool:
        """Announce to every shard that is not told yet; whether some have still to confirm."""
        now_s = time.monotonic()
        with self._changed:
            told = list(self._told)
        for each in told:
            if each.ref is not None and not self._confirmed(each, now_s):
                continue
            if each.awaits(offer.version):
                each.ref, each.version = each.shard.announce.remote(*offer), offer.version
                each.since_s = self._announced_s = now_s
        return any(each.ref is not None for each in told)

    def _confirmed(self, told: _Told, now_s: float) -> bool:
        """Whether the last call has come to its end; one that is lost or silent is forgotten."""
        ready, _ = ray.wait([told.ref], timeout=0)
        if not ready and now_s - told.since_s < told.silence_s:
            return False
        told.ref, ref = None, told.ref
        try:
            if ready:
                ray.get(ref, timeout=SILENCE_S)
                told.patience.answered(now_s - told.since_s)
                told.silence_s = told.patience.seconds
            else:
                told.version, told.silence_s = 0, min(SILENCE_S, 2 * told.silence_s)
        except ray.exceptions.ActorUnavailableError:
            told.version = 0  # the call was lost
        except ray.exceptions.RayActorError:
            told.is_dead = True  # the driver's matter, who brings another one
        return True
