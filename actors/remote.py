"""Ray shell of the actor: thin, all decisions are in the core.

Created by the composition root alone. `run` occupies the default concurrency group; the `control`
group answers meanwhile. What crosses is bytes of our wire format and plain values. Parameters are
pulled: every acknowledgement of a chunk names the newest versions, and brings those that the actor
does not hold; an actor that starts asks its shard for the first ones.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

import ray

from qfleet.actors.actor import Actor
from qfleet.actors.build import build_actor
from qfleet.actors.memory_limit import MemoryLimit
from qfleet.actors.plan import ActorPlan
from qfleet.actors.remote_params import fetch_snapshot
from qfleet.actors.remote_place import place_of_this_process
from qfleet.actors.remote_push import ChunkSender
from qfleet.actors.role_process import enter_role
from qfleet.common.adaptive_size import AdaptiveSize
from qfleet.common.capture_stream import decode_capture, encode_capture, restoring
from qfleet.common.errors import RoleLostError, WaitTimeoutError
from qfleet.common.messages import encode_chunk
from qfleet.common.role_place import read_logs
from qfleet.common.signals import die_of_sigterm
from qfleet.common.stage_clock import ENCODING, WAIT, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec, ParamsOffer

POLL_S = 0.1
LISTEN_PERIOD_S = 0.005
"""While it plays, an actor looks for acknowledgements no more often than this."""
FIRST_PARAMS_TIMEOUT_S = 60.0
FIRST_PARAMS_QUESTION_S = 0.2
"""How long the shard keeps one question for the first parameters open."""
SENDING_TO_GROW = 0.05
"""An actor that spends more than this share of its time on sending makes larger chunks."""
RAY_OPTIONS: dict[str, Any] = {
    "concurrency_groups": {"control": 1},
    "max_restarts": 0,
    # A call that was lost must not hold up those behind it: Ray waits 30 s for a missing number.
    "allow_out_of_order_execution": True,
}
DRAIN_S = 2.0


class ActorShell:
    """One actor process; becomes a Ray actor through `remote_actor_class`."""

    def __init__(
        self,
        plan_json: str,
        spec_json: str,
        import_paths: list[str],
        run_id: str,
        slot: int,
        incarnation: int,
        ladder: list[int],
    ) -> None:
        plan = enter_role(ActorPlan, plan_json, import_paths)
        die_of_sigterm()
        limit_threads(plan.num_cpus)
        self._slot, self._incarnation = slot, incarnation
        self._chunk_rows = AdaptiveSize(
            plan.chunk_transitions,
            plan.max_chunk_transitions,
            grow_above=SENDING_TO_GROW,
            shrink_below=SENDING_TO_GROW / 5,
            grow_after=4,
            shrink_after=64,
        )
        self._pushed_at_s = self._listened_at_s = 0.0
        self._core: Actor = build_actor(
            plan,
            EnvironmentSpec.from_json(spec_json),
            run_id=run_id,
            slot=slot,
            incarnation=incarnation,
            ladder=(ladder[0], ladder[1]),
        )
        self._memory = MemoryLimit(plan.max_memory_gb)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._first_credits = plan.chunk_transitions
        self._sender: ChunkSender | None = None
        self._shard: Any = None
        self._drain_s = DRAIN_S
        self._error: Exception | None = None
        self._unfetchable_version, self._is_stepping = 0, False
        self._clock = StageClock()

    @ray.method(concurrency_group="control")
    def set_ladder(self, place: int, n_actors: int) -> None:
        """Play at that place of the ε ladder of `n_actors` actors."""
        with self._lock:
            self._core.set_ladder(place, n_actors)

    @ray.method(concurrency_group="control")
    def replace_shard(self, shard: Any) -> None:
        """Another process serves this slot's replay shard."""
        self._shard = shard
        if self._sender is not None:
            self._sender.replace_shard(shard)

    @ray.method(concurrency_group="control")
    def request_stop(self, drain_s: float = DRAIN_S) -> None:
        """End `run` after the current step; what is on its way is waited for so long."""
        self._drain_s = drain_s
        self._stop.set()

    @ray.method(concurrency_group="control")
    def ping(self, with_place: bool = False) -> dict[str, Any]:
        """Liveness and counters, and where it runs if asked; answers while `run` plays."""
        counters = self._counters()
        return counters | {"place": place_of_this_process()} if with_place else counters

    @ray.method(concurrency_group="control")
    def written(self, paths: list[str], offsets: list[int]) -> list[bytes]:
        """What its own log files hold from there on."""
        return read_logs(paths, offsets)

    def _counters(self) -> dict[str, Any]:
        core = self._core
        return {
            "slot": self._slot,
            "incarnation": self._incarnation,
            "pid": os.getpid(),
            "env_steps": core.env_steps,
            "episodes": core.episodes,
            "produced": core.produced,
            "unsent": core.pending_rows + (0 if self._sender is None else self._sender.rows),
            "params_version": core.params_version,
            "params_learner_step": core.params_learner_step,
            "stale_params": core.stale_params,
            "ladder": list(core.ladder),
            "times": self._times(),
            "chunk_transitions": self._chunk_rows.size,
            "is_stepping": self._is_stepping,
            "has_begun": self._sender is not None,
        }

    def _times(self) -> dict[str, float]:
        """The core's stages, and here what it costs to send a chunk and to wait."""
        times = dict(self._core.clock.seconds)
        for stage, seconds in list(self._clock.seconds.items()):
            times[stage] = times.get(stage, 0.0) + seconds
        return times

    def run(self, shard: Any) -> dict[str, Any]:
        """Play until `request_stop`, pushing chunks to `shard`; returns the final counters.

        Called again, because the first call or its answer was lost or late, it says the same.
        """
        if self._sender is None and not self._stop.is_set():
            try:
                self._run(shard)
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._counters()

    def _run(self, shard: Any) -> None:
        shard = shard if self._shard is None else self._shard
        self._sender = ChunkSender(
            shard,
            self._slot,
            credits=self._first_credits,
            held_versions=self._held_versions,
            take_offer=self._take,
        )
        self._await_first_params(shard)
        self._memory.check_start(self._slot)
        try:
            self._play(self._sender)
        finally:  # also what was played before an environment failed
            self._push(self._sender)
            self._sender.drain(self._drain_s)
        if not self._stop.is_set():
            raise self._memory.error()

    def _play(self, sender: ChunkSender) -> None:
        """Until `request_stop`, or until the process has grown too large."""
        while not self._stop.is_set() and not self._memory.is_exceeded():
            with self._lock:
                self._is_stepping = True
                self._core.step()
                self._is_stepping = False
            if self._core.pending_rows >= self._chunk_rows.size:
                self._push(sender)
            elif time.perf_counter() - self._listened_at_s > LISTEN_PERIOD_S:
                self._listen(sender, 0.0)

    def _await_first_params(self, shard: Any) -> None:
        deadline_s = time.monotonic() + FIRST_PARAMS_TIMEOUT_S
        refs: list[Any] = []
        patience_s = 2 * FIRST_PARAMS_QUESTION_S
        while self._core.params_version is None and not self._stop.is_set():
            if time.monotonic() > deadline_s:
                raise WaitTimeoutError(
                    f"actor {self._slot} waited {FIRST_PARAMS_TIMEOUT_S:.0f} s for the learner's "
                    "first parameters"
                )
            refs.append(shard.await_params.remote(FIRST_PARAMS_QUESTION_S))
            ready, refs = ray.wait(refs, timeout=patience_s)
            patience_s *= 1.0 if ready else 2.0
            for ref in ready:
                with contextlib.suppress(ray.exceptions.ActorUnavailableError):  # it was lost
                    self._take(ParamsOffer(*ray.get(ref, timeout=FIRST_PARAMS_TIMEOUT_S)))

    def _held_versions(self) -> tuple[int, int]:
        return self._core.params_version or 0, self._core.target_version or 0

    def _take(self, offer: ParamsOffer) -> None:
        """Act with what is offered and newer, the target first; what is gone leaves the old one."""
        held = self._held_versions()
        offered = (
            (offer.target_version, held[1], offer.target),
            (offer.version, held[0], offer.latest),
        )
        for version, held_version, payload in offered:
            if payload is None or version <= max(held_version, self._unfetchable_version):
                continue
            snapshot = fetch_snapshot(payload)
            if snapshot is None:
                self._unfetchable_version = version
                continue
            with self._lock:
                self._core.set_params(snapshot)

    def _push(self, sender: ChunkSender) -> None:
        chunk = self._core.take_chunk()
        if chunk is None:
            return
        self._clock.start()
        sender.send(chunk)
        sending_s, now_s = self._clock.lap(ENCODING), time.perf_counter()
        self._chunk_rows.observe(sending_s, now_s - self._pushed_at_s)
        self._pushed_at_s = now_s
        while not sender.has_room(self._chunk_rows.size) and not self._stop.is_set():
            self._listen(sender, POLL_S)
        self._clock.lap(WAIT)

    def _listen(self, sender: ChunkSender, timeout_s: float) -> None:
        """Take what the shard says: acknowledgements, and parameters with them."""
        sender.wait(timeout_s)
        self._listened_at_s = time.perf_counter()
        if sender.refused:
            self._stop.set()

    def act(self, n_env_steps: int | None, offer: list[Any]) -> bytes | None:
        """Lockstep: `n_env_steps` env steps (None: one episode), transitions as one chunk.

        Raises:
            RoleLostError: when the parameters that are offered are gone.
        """
        self._take(ParamsOffer(*offer))
        if self._core.params_version != offer[0]:
            raise RoleLostError(f"actor {self._slot} could not get parameters version {offer[0]}")
        if n_env_steps is None:
            self._core.act_episode()
        else:
            self._core.act_steps(n_env_steps)
        chunk = self._core.take_chunk()
        return None if chunk is None else encode_chunk(chunk)

    def capture(self) -> bytes:
        """The core's state, for a checkpoint."""
        with self._lock:
            return b"".join(encode_capture(self._core.capture()))

    def restore(self, data: bytes) -> int:
        """The inverse of `capture`; returns how many open-window transitions were dropped."""
        with self._lock, restoring(f"the state of actor {self._slot}"):
            self._core.restore(decode_capture(data))
            return self._core.dropped_transitions


def remote_actor_class() -> Any:
    """The Ray actor class of `ActorShell`; one control thread beside the playing one."""
    return ray.remote(**RAY_OPTIONS)(ActorShell)
