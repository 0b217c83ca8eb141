"""Ray shells of the actor and the evaluator: thin, all decisions are in the cores.

Created by the composition root alone. `run` occupies the default concurrency group; the `control`
group answers meanwhile. What crosses is bytes of our wire format and plain values.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from typing import Any

import ray

from qfleet.actors.actor import Actor
from qfleet.actors.build import build_actor
from qfleet.actors.confirmation import run_request
from qfleet.actors.evaluator import Evaluator
from qfleet.actors.memory_limit import MemoryLimit
from qfleet.actors.plan import MAX_UNACKNOWLEDGED_CHUNKS, ActorPlan, EvaluatorPlan
from qfleet.common import user_code
from qfleet.common.adaptive_size import AdaptiveSize
from qfleet.common.capture_stream import decode_capture, encode_capture, restoring
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import decode_snapshot, encode_chunk
from qfleet.common.plan_json import PlanT, plan_from_json
from qfleet.common.q_functions import QFunctions
from qfleet.common.stage_clock import ENCODING, WAIT, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import (
    EnvironmentSpec,
    EvaluationRequest,
    InsertAck,
    ParamsSnapshot,
)

ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.2
SENDING_TO_GROW = 0.05
"""An actor that spends more than this share of its time on sending makes larger chunks."""
DRAIN_S = 2.0


def enter_role(kind: type[PlanT], plan_json: str, import_paths: list[str]) -> PlanT:
    """What a role that plays does first: import paths of the driver, and its plan."""
    user_code.enter(import_paths)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return plan_from_json(kind, plan_json)


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
    ) -> None:
        plan = enter_role(ActorPlan, plan_json, import_paths)
        limit_threads(plan.num_cpus)
        self._slot = slot
        self._chunk_rows = AdaptiveSize(
            plan.chunk_transitions,
            plan.max_chunk_transitions,
            grow_above=SENDING_TO_GROW,
            shrink_below=SENDING_TO_GROW / 5,
            grow_after=4,
            shrink_after=64,
        )
        self._pushed_at_s = 0.0
        self._core: Actor = build_actor(
            plan,
            EnvironmentSpec.from_json(spec_json),
            run_id=run_id,
            slot=slot,
            incarnation=incarnation,
        )
        self._memory = MemoryLimit(plan.max_memory_gb)
        self._lock = threading.Lock()
        self._inbox: collections.deque[ParamsSnapshot] = collections.deque()
        self._first_params = threading.Event()
        self._stop = threading.Event()
        self._unacknowledged: collections.deque[tuple[bytes, int, Any]] = collections.deque()
        self._unacknowledged_rows = 0
        self._credits = plan.chunk_transitions
        self._clock = StageClock()

    @ray.method(concurrency_group="control")
    def set_params(self, data: bytes) -> tuple[int, int, bool]:
        """Take a snapshot, to be used from the next step on; returns (slot, version, target?)."""
        snapshot = decode_snapshot(data)
        self._inbox.append(snapshot)
        self._first_params.set()
        return self._slot, snapshot.version, snapshot.is_target_sync

    @ray.method(concurrency_group="control")
    def set_n_actors(self, n_actors: int) -> None:
        """Re-assign the ε ladder to a fleet of `n_actors`."""
        with self._lock:
            self._core.set_n_actors(n_actors)

    @ray.method(concurrency_group="control")
    def request_stop(self) -> None:
        """End `run` after the current step."""
        self._stop.set()
        self._first_params.set()

    @ray.method(concurrency_group="control")
    def ping(self) -> dict[str, Any]:
        """Liveness and counters; answers while `run` plays."""
        return self._counters()

    def _counters(self) -> dict[str, Any]:
        core = self._core
        return {
            "slot": self._slot,
            "pid": os.getpid(),
            "env_steps": core.env_steps,
            "episodes": core.episodes,
            "produced": core.produced,
            "unsent": core.pending_rows + self._unacknowledged_rows,
            "params_version": core.params_version,
            "params_learner_step": core.params_learner_step,
            "stale_params": core.stale_params,
            "times": self._times(),
            "chunk_transitions": self._chunk_rows.size,
        }

    def _times(self) -> dict[str, float]:
        """The core's stages, and here what it costs to send a chunk and to wait."""
        times = dict(self._core.clock.seconds)
        for stage, seconds in list(self._clock.seconds.items()):
            times[stage] = times.get(stage, 0.0) + seconds
        return times

    def run(self, shard: Any) -> dict[str, Any]:
        """Play until `request_stop`, pushing chunks to `shard`; returns the final counters."""
        if not self._first_params.wait(ANSWER_TIMEOUT_S):
            raise WaitTimeoutError(
                f"actor {self._slot} waited {ANSWER_TIMEOUT_S:.0f} s for the learner's first "
                "parameters"
            )
        self._memory.check_start(self._slot)
        while not self._stop.is_set() and not self._memory.is_exceeded():
            with self._lock:
                self._take_params()
                if self._core.params_version is not None:
                    self._core.step()
            if self._core.pending_rows >= self._chunk_rows.size:
                self._push(shard)
        self._push(shard)
        self._drain()
        if not self._stop.is_set():
            raise self._memory.error()
        return self._counters()

    def _take_params(self) -> None:
        while self._inbox:
            self._core.set_params(self._inbox.popleft())

    def _push(self, shard: Any) -> None:
        chunk = self._core.take_chunk()
        if chunk is None:
            return
        self._clock.start()
        data = encode_chunk(chunk)
        self._unacknowledged.append((data, len(chunk), (shard, shard.insert.remote(data))))
        sending_s, now_s = self._clock.lap(ENCODING), time.perf_counter()
        self._chunk_rows.observe(sending_s, now_s - self._pushed_at_s)
        self._pushed_at_s = now_s
        self._unacknowledged_rows += len(chunk)
        while len(self._unacknowledged) >= self._window and not self._stop.is_set():
            self._wait_for_oldest()

    @property
    def _window(self) -> int:
        """Chunks that may be under way: one when the shard is about to hold the next one back.

        Playing on meanwhile would only make older transitions.
        """
        return MAX_UNACKNOWLEDGED_CHUNKS if self._credits >= self._chunk_rows.size else 1

    def _drain(self) -> None:
        """At the end: acknowledgements that come soon are taken, the rest stay counted."""
        deadline = time.monotonic() + DRAIN_S
        while self._unacknowledged and time.monotonic() < deadline:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        data, rows, (shard, ref) = self._unacknowledged[0]
        started = time.perf_counter()
        self._clock.start()
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait([ref], timeout=POLL_S)
            waited = time.perf_counter() - started
            if self._stop.is_set() and waited > DRAIN_S:
                return
            if not ready and waited > ANSWER_TIMEOUT_S:
                raise WaitTimeoutError(
                    f"actor {self._slot} waited {waited:.0f} s for the replay server to "
                    f"acknowledge a chunk of {rows} transitions"
                )
        self._clock.lap(WAIT)
        ack = InsertAck(*ray.get(ref, timeout=ANSWER_TIMEOUT_S))
        if ack.status == "blocked":
            self._unacknowledged[0] = (data, rows, (shard, shard.insert.remote(data)))
            return
        self._unacknowledged.popleft()
        self._unacknowledged_rows -= rows
        self._credits = ack.credits
        if ack.status not in ("accepted", "duplicate"):
            self._stop.set()

    def act(self, n_env_steps: int | None) -> bytes | None:
        """Lockstep: `n_env_steps` env steps (None: one episode), transitions as one chunk."""
        self._take_params()
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


class EvaluatorShell:
    """The evaluator process; becomes a Ray actor through `remote_evaluator_class`."""

    def __init__(self, plan_json: str, spec_json: str, import_paths: list[str]) -> None:
        self._plan = enter_role(EvaluatorPlan, plan_json, import_paths)
        limit_threads(self._plan.num_cpus)
        spec = EnvironmentSpec.from_json(spec_json)
        self._q_functions = QFunctions(self._plan.network, spec)
        self._evaluator = Evaluator(
            self._plan.env,
            self._plan.epsilon,
            max_steps_per_episode=self._plan.max_episode_steps,
        )

    def evaluate(self, data: bytes, request: list[Any]) -> list[Any]:
        """An `EvaluationReport` as a list, for the snapshot in `data`."""
        snapshot = decode_snapshot(data)
        q_function = self._q_functions.of(snapshot.arrays)
        return list(run_request(self._evaluator, q_function, snapshot, EvaluationRequest(*request)))


def remote_actor_class() -> Any:
    """The Ray actor class of `ActorShell`; one control thread beside the playing one."""
    options: dict[str, Any] = {"concurrency_groups": {"control": 1}, "max_restarts": 0}
    return ray.remote(**options)(ActorShell)


def remote_evaluator_class() -> Any:
    """The Ray actor class of `EvaluatorShell`."""
    return ray.remote(max_restarts=0)(EvaluatorShell)
