"""Ray shell of a replay shard: threads of their own for inserts, samples and control calls.

Created by the composition root alone. One lock guards the core. What the rate limiter holds back is
kept here: an insert stays in its thread, payload and all, until the learner has drawn enough, so
that no actor sends a chunk twice. A held-back insert delays no sample, no priority update and no
control call, nor the reverse.

It also hands on the learner's parameters: an acknowledgement names the newest versions and brings
what the actor does not hold. The learner announces each version once to every shard.
Threads, because Ray answers a plain method about one and a half times as fast as a coroutine.

Lost with a shard are the chunks it has acknowledged since its last cut; those it held back their
actors still have, and the announcement comes back from the learner (`LearnerShell.replace_shard`).
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import astuple, replace
from typing import Any

import ray

from qfleet.common.errors import WireFormatError
from qfleet.common.inline_pieces import split
from qfleet.common.messages import decode_chunk, decode_priority_update
from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.plan_json import plan_from_json
from qfleet.common.role_place import read_logs, role_place
from qfleet.common.sample_message import encode_shard_sample
from qfleet.common.signals import die_of_sigterm
from qfleet.common.stage_clock import INSERT_HELD, REPLAY, SAMPLE_HELD, SAMPLING, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import ChunkId, EnvironmentSpec, EpisodeSummary, TransitionChunk
from qfleet.replay_server.announced_params import AnnouncedParams
from qfleet.replay_server.build import build_shard
from qfleet.replay_server.cut_traffic import CutTraffic
from qfleet.replay_server.held_calls import HeldCalls
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rejections import Rejections

SAMPLE_HOLD_S = 0.05
"""A request for draws that the limiter holds back is answered None after this: silence of the
shard for much longer means that a call was lost (`learner/remote_feed.py`)."""
CONCURRENCY_GROUPS = {"insert": 16, "sample": 1, "update": 1, "params": 4}
"""Threads beside the control calls' one. So many inserts wait for the limiter, the rest behind
them; `update` takes what the learner tells, `params` answers actors."""
IN_ORDER_S = 1.0  # for a chunk with frames to wait for one that was sent before it
RAY_OPTIONS: dict[str, Any] = {
    "concurrency_groups": CONCURRENCY_GROUPS,
    "max_restarts": 0,
    # A call that was lost must not hold up those behind it: Ray waits 30 s for a missing number.
    "allow_out_of_order_execution": True,
}


class ReplayServerShell:
    """One shard's process; becomes a Ray actor through `remote_replay_class`."""

    def __init__(self, plan_json: str, spec_json: str, run_id: str, shard: int) -> None:
        plan = plan_from_json(ReplayPlan, plan_json)
        die_of_sigterm()
        limit_threads(plan.num_cpus)
        self._spec = EnvironmentSpec.from_json(spec_json)
        self._shard = shard
        self._core = build_shard(plan, self._spec, run_id=run_id, shard=shard)
        self._lock = threading.Lock()
        """Guards everything below and the core."""
        self._inserting, self._sampling = HeldCalls(self._lock), HeldCalls(self._lock)
        self._held_chunks: set[ChunkId] = set()
        self._stored = threading.Condition(self._lock)
        self._params = AnnouncedParams(self._lock)
        self._episodes: list[EpisodeSummary] = []
        self._first_episode = 0
        self._malformed_chunks = Rejections()
        self._gate_is_open = False
        self._replay_s = 0.0
        self._sampling_clock = StageClock()
        self._cuts = CutTraffic(self._core, self._lock, self._inserting.wake)

    @ray.method(concurrency_group="insert")
    def insert(
        self, data: bytes, held: tuple[int, int] = (0, 0), wait: bool = True
    ) -> list[list[Any]]:
        """Store a chunk, as soon as the limiter, asked if `wait`, allows it.

        Returns an `InsertAck` and, as lists both, a `ParamsOffer` of what the actor does not hold:
        `held` are its versions of parameters and target. Malformed bytes raise.
        """
        started_s = time.thread_time()  # other inserts decode at the same time
        chunk = self._decode(data)
        decoding_s = time.thread_time() - started_s
        with self._lock:
            was_held = wait and self._hold_back(chunk) > 0.0
            started_s = time.perf_counter()
            ack = self._core.insert(chunk, time.time())
            if ack.status == "accepted":
                self._episodes.extend(chunk.episodes)
            self._sampling.wake()
            self._stored.notify_all()
            self._replay_s += decoding_s + time.perf_counter() - started_s
            if was_held and not self._gate_is_open:
                self._params.await_coming()
            return [list(ack), list(self._params.newest.beyond(*held))]

    def _decode(self, data: bytes) -> TransitionChunk:
        try:
            return decode_chunk(data, self._spec)
        except WireFormatError as error:
            with self._lock:
                self._malformed_chunks.add(str(error))
            raise

    def _hold_back(self, chunk: TransitionChunk) -> float:
        """Wait, the lock released; seconds, 0 for a chunk that would not be stored."""
        rows, name = len(chunk), chunk.chunk_id
        self._held_chunks.add(name)
        if chunk.frames is not None:  # its rows may name frames of the chunk before
            self._stored.wait_for(lambda: not self._core.comes_early(name), IN_ORDER_S)
        held_s = self._inserting.let_through(
            lambda: self._core.can_insert(rows),
            lambda: self._gate_is_open or not self._core.is_new(name),
        )
        self._held_chunks.discard(name)
        return held_s or 0.0

    @ray.method(concurrency_group="params")
    def holds(self, run_id: str, slot: int, incarnation: int, seq: int) -> bool:
        """Whether that chunk is here and waits for the limiter; asked when an answer is late.

        While every insert's thread is taken, any chunk may wait behind them, so none is sent again.
        """
        with self._lock:
            is_full = len(self._held_chunks) >= CONCURRENCY_GROUPS["insert"]
            return is_full or ChunkId(run_id, slot, incarnation, seq) in self._held_chunks

    @ray.method(concurrency_group="params")
    def begin_at(self, slot: int, incarnation: int, seq: int) -> None:
        """An actor turns here from a shard that died: what came before `seq` went there."""
        with self._lock:
            self._core.begin_at(slot, incarnation, seq)

    @ray.method(concurrency_group="params")
    def await_params(self, timeout_s: float) -> list[Any]:
        """A whole `ParamsOffer` as a list; without any version when none is announced in time."""
        with self._lock:
            return list(self._params.await_first(timeout_s))

    @ray.method(concurrency_group="update")
    def announce(self, version: int, target_version: int, latest: Any, target: Any) -> None:
        """Offer these from now on (`ParamsOffer`); older ones than those known are ignored."""
        with self._lock:
            self._params.announce(version, target_version, latest, target)

    @ray.method(concurrency_group="sample")
    def sample(
        self,
        n_draws: int,
        n_pieces: int = 1,
        params_version: int = 0,
        reader: FrameReader | None = None,
    ) -> bytes | list[bytes] | list[None] | None:
        """A `ShardSample` as bytes, in so many parts (`inline_pieces`); None when held back.

        `params_version`: the learner's newest, whose announcement may still be on its way;
        `reader`: see `ReplayShard.sample`.
        """
        data = self._sample(n_draws, params_version, reader)
        if n_pieces == 1:
            return data
        return [None] * n_pieces if data is None else split(data, n_pieces)

    @ray.method(concurrency_group="sample")
    def draw(self, n_draws: int, reader: FrameReader | None = None) -> bytes | None:
        """Lockstep: the same at once."""
        return self._sample(n_draws, 0, reader, wait=False)

    def _sample(
        self, n_draws: int, params_version: int, reader: FrameReader | None, *, wait: bool = True
    ) -> bytes | None:
        with self._lock:
            self._params.expect(params_version)
            held_s = self._sampling.let_through(
                lambda: self._core.can_sample(n_draws),
                lambda: not wait or self._gate_is_open,
                SAMPLE_HOLD_S,
            )
            if held_s is None or (self._gate_is_open and self._core.size == 0):
                return None
            self._sampling_clock.start()
            # Wall time: ages must mean something after a restore on another host.
            sample = self._core.sample(n_draws, time.time(), reader=reader)
            self._inserting.wake()
        data = encode_shard_sample(replace(sample, held_s=held_s))
        self._sampling_clock.lap(SAMPLING)
        return data

    @ray.method(concurrency_group="update")
    def update_priorities(self, *messages: bytes) -> int:
        """Apply new |TD errors|, in that order; returns how many keys were still current."""
        started_s = time.perf_counter()
        updates = [decode_priority_update(data) for data in messages]
        with self._lock:
            applied = sum(self._core.update_priorities(update) for update in updates)
            self._replay_s += time.perf_counter() - started_s
        return applied

    # Default group: answers while the others wait.

    def ready(self) -> int:
        """This process's id, once it can answer."""
        return os.getpid()

    def place(self) -> dict[str, Any]:
        """See `role_place`."""
        return role_place(ray.get_runtime_context().get_node_id())

    def written(self, paths: list[str], offsets: list[int]) -> list[bytes]:
        """What its own log files hold from there on."""
        return read_logs(paths, offsets)

    def open_gate(self) -> None:
        """The run ends: the limiter holds nothing back any more, so no caller is left waiting."""
        with self._lock:
            self._gate_is_open = True
            self._inserting.wake_all()
            self._sampling.wake_all()

    def stats(self) -> list[Any]:
        """`ReplayStats` as a list."""
        with self._lock:
            return list(self._core.stats())

    def targets_acted(self) -> dict[int, list[int]]:
        """Versions of the target syncs that each actor slot has acted with."""
        with self._lock:
            return self._core.slots.targets_acted()

    def report(self, n_episodes_seen: int = 0) -> dict[str, Any]:
        """Counters, and the episodes from number `first_episode` on.

        Those before `n_episodes_seen` are forgotten; an answer that is lost thus loses no episode.
        """
        with self._lock:
            gone = max(0, n_episodes_seen - self._first_episode)
            del self._episodes[:gone]
            self._first_episode += gone
            return {
                "shard": self._shard,
                "pid": os.getpid(),
                "stats": list(self._core.stats()),
                "slots": [list(slot) for slot in self._core.slots.stats()],
                "arrivals": [list(arrival) for arrival in self._core.arrivals],
                "limiter": self._core.explain_limiter(),
                "first_episode": self._first_episode,
                "episodes": [astuple(episode) for episode in self._episodes],
                "malformed_chunks": self._malformed_chunks.counts(),
                "times": {
                    REPLAY: self._replay_s,
                    SAMPLING: self._sampling_clock.seconds.get(SAMPLING, 0.0),
                    INSERT_HELD: self._inserting.held_s,
                    SAMPLE_HELD: self._sampling.held_s,
                },
            }

    def fence(self, slot: int, incarnation: int) -> None:
        """Refuse chunks of earlier incarnations of `slot` from now on, also those held back."""
        with self._lock:
            self._core.fence(slot, incarnation)
            self._inserting.wake_all()

    def take_over(self, env_steps: dict[int, int], incarnations: dict[int, int]) -> None:
        """Go on where a shard that died had got to: env steps and incarnations by actor slot."""
        with self._lock:
            self._core.slots.played_at_least(env_steps)
            for slot, incarnation in incarnations.items():
                self._core.fence(slot, incarnation)

    def freeze(self, contents: bool, cut: int) -> bytes:
        """Keep the core's state of now for `next_piece`; returns its head (`CutTraffic`)."""
        return self._cuts.freeze(contents, cut)

    def next_piece(self, number: int, n_parts: int = 1) -> list[bytes] | list[None]:
        """A piece of the frozen state, in parts (`inline_pieces`); None at its end."""
        return self._cuts.next_piece(number, n_parts)

    def drop_frozen(self) -> None:
        """Nobody asks for the rest: inserts need not wait for it."""
        self._cuts.drop()

    def restore_piece(self, number: int, *parts: bytes) -> None:
        """A piece, in parts, of a stream that `end_restore` completes; taken in its turn, once."""
        self._cuts.restore_piece(number, parts)

    def end_restore(self) -> None:
        """Become what the pieces told of."""
        self._cuts.end_restore()


def remote_replay_class() -> Any:
    """The Ray actor class of `ReplayServerShell`."""
    return ray.remote(**RAY_OPTIONS)(ReplayServerShell)
