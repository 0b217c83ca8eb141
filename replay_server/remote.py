"""Ray shell of a replay shard: threads of their own for inserts, samples and control calls.

Created by the composition root alone. One lock guards the core; what the rate limiter holds back
waits for a change without it, on one side only: a held-back insert never delays a sample, nor the
reverse. Threads, because Ray answers a plain method about one and a half times as fast as a
coroutine (docs/benchmarks.md has what a shard answers per second).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from qfleet.common.capture_stream import encode_rows
from qfleet.common.errors import WireFormatError
from qfleet.common.inline_pieces import join, split
from qfleet.common.messages import decode_chunk, decode_priority_update, encode_shard_sample
from qfleet.common.plan_json import plan_from_json
from qfleet.common.stage_clock import INSERT_HELD, REPLAY, SAMPLE_HELD, SAMPLING, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec, EpisodeSummary
from qfleet.replay_server.build import build_shard
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.shard_capture import FrozenShard, RestoringShard

HOLD_BACK_S = 2.0
"""How long the limiter holds back calls of one side before they are answered `blocked`."""
QUEUED_HOLD_BACK_S = 0.005
"""How long each further call waits once the side has been held back for `HOLD_BACK_S`.

Calls of one side queue behind each other, so that those behind must not each wait in full.
"""


class _Side:
    """Inserting or sampling: its thread's time, and how long the limiter has held it back."""

    def __init__(self) -> None:
        self.clock = StageClock()
        self.held_s = 0.0
        self.held_since_s: float | None = None

    def patience_s(self, now_s: float) -> float:
        """How long the call at hand may wait."""
        if self.held_since_s is None:
            self.held_since_s = now_s
        return max(QUEUED_HOLD_BACK_S, self.held_since_s + HOLD_BACK_S - now_s)


class ReplayServerShell:
    """One shard's process; becomes a Ray actor through `remote_replay_class`."""

    def __init__(self, plan_json: str, spec_json: str, run_id: str, shard: int) -> None:
        plan = plan_from_json(ReplayPlan, plan_json)
        limit_threads(plan.num_cpus)
        self._spec = EnvironmentSpec.from_json(spec_json)
        self._shard = shard
        self._core = build_shard(plan, self._spec, run_id=run_id, shard=shard)
        self._changed = threading.Condition()
        """Guards everything below and the core; notified when the limiter may think anew."""
        self._episodes: list[EpisodeSummary] = []
        self._malformed_chunks: dict[str, int] = {}
        self._gate_is_open = False
        self._inserting, self._sampling = _Side(), _Side()
        self._frozen: FrozenShard | None = None
        self._restoring: RestoringShard | None = None

    def _hold_back(self, side: _Side, limiter_allows: Callable[[], bool]) -> bool:
        """Wait, the lock released, until the limiter allows it; False when it did not in time."""

        def allowed() -> bool:
            return self._gate_is_open or limiter_allows()

        if not allowed():
            started_s = time.monotonic()
            in_time = self._changed.wait_for(allowed, side.patience_s(started_s))
            side.held_s += time.monotonic() - started_s
            if not in_time:
                return False
        side.held_since_s = None
        return True

    @ray.method(concurrency_group="insert")
    def insert(self, data: bytes, wait: bool = True) -> list[Any]:
        """An `InsertAck` as a list; malformed bytes raise and leave the memory as it was."""
        clock = self._inserting.clock
        clock.start()
        try:
            chunk = decode_chunk(data, self._spec)
        except WireFormatError as error:
            reason = str(error)
            with self._changed:
                self._malformed_chunks[reason] = self._malformed_chunks.get(reason, 0) + 1
            raise
        with self._changed:
            clock.lap(REPLAY)
            rows = len(chunk)
            if wait and not self._hold_back(self._inserting, lambda: self._core.can_insert(rows)):
                return ["blocked", -1, 0]
            clock.start()
            ack = self._core.insert(chunk, time.time())
            if ack.status == "accepted":
                self._episodes.extend(chunk.episodes)
            self._changed.notify_all()
        clock.lap(REPLAY)
        return list(ack)

    @ray.method(concurrency_group="sample")
    def sample(
        self, n_draws: int, wait: bool = True, n_pieces: int = 1
    ) -> bytes | list[bytes] | list[None] | None:
        """A `ShardSample` as bytes, or None when the limiter still holds it back.

        With `n_pieces` above 1 a list of so many parts of it (`inline_pieces`), or of None.
        """
        data = self._sample(n_draws, wait)
        if n_pieces == 1:
            return data
        return [None] * n_pieces if data is None else split(data, n_pieces)

    def _sample(self, n_draws: int, wait: bool) -> bytes | None:
        with self._changed:
            held_before_s = self._sampling.held_s
            if wait and not self._hold_back(self._sampling, lambda: self._core.can_sample(n_draws)):
                return None
            if self._gate_is_open and self._core.size == 0:
                return None
            self._sampling.clock.start()
            # Wall time: ages must mean something after a restore on another host.
            sample = self._core.sample(n_draws, time.time())
            self._changed.notify_all()
        held_s = self._sampling.held_s - held_before_s
        data = encode_shard_sample(replace(sample, held_s=held_s))
        self._sampling.clock.lap(SAMPLING)
        return data

    @ray.method(concurrency_group="sample")
    def update_priorities(self, *messages: bytes) -> int:
        """Apply new |TD errors|, in that order; returns how many keys were still current."""
        self._sampling.clock.start()
        updates = [decode_priority_update(data) for data in messages]
        with self._changed:
            applied = sum(self._core.update_priorities(update) for update in updates)
        self._sampling.clock.lap(REPLAY)
        return applied

    # Default group: answers while the others wait.

    def ready(self) -> int:
        """This process's id, once it can answer."""
        return os.getpid()

    def open_gate(self) -> None:
        """The run ends: the limiter holds nothing back any more, so no caller is left waiting."""
        with self._changed:
            self._gate_is_open = True
            self._changed.notify_all()

    def stats(self) -> list[Any]:
        """`ReplayStats` as a list."""
        with self._changed:
            return list(self._core.stats())

    def report(self) -> dict[str, Any]:
        """Counters, and the episodes that arrived since the previous report."""
        with self._changed:
            episodes, self._episodes = self._episodes, []
            stats = list(self._core.stats())
            malformed = dict(self._malformed_chunks)
            limiter = self._core.explain_limiter()
        return {
            "shard": self._shard,
            "pid": os.getpid(),
            "stats": stats,
            "episodes": [
                (
                    e.actor_slot,
                    e.sub_env,
                    e.episode_return,
                    e.length_env_steps,
                    e.epsilon,
                    e.terminated,
                )
                for e in episodes
            ],
            "malformed_chunks": malformed,
            "limiter": limiter,
            "times": self._times(),
        }

    def _times(self) -> dict[str, float]:
        inserting, sampling = self._inserting, self._sampling
        priorities_s = sampling.clock.seconds.get(REPLAY, 0.0)
        return {
            REPLAY: inserting.clock.seconds.get(REPLAY, 0.0) + priorities_s,
            SAMPLING: sampling.clock.seconds.get(SAMPLING, 0.0),
            INSERT_HELD: inserting.held_s,
            SAMPLE_HELD: sampling.held_s,
        }

    def fence(self, slot: int, incarnation: int) -> None:
        """Refuse chunks of earlier incarnations of `slot` from now on."""
        with self._changed:
            self._core.fence(slot, incarnation)

    def freeze(self, contents: bool) -> bytes:
        """Keep the core's state of this moment for `next_piece` to give out; returns its head.

        Inserts and samples go on meanwhile; an insert waits when the reader is too slow for it.
        Without contents only counters and ledger are kept.
        """
        with self._changed:
            self._frozen = self._core.freeze(contents)
        return self._frozen.head()

    def next_piece(self, n_parts: int = 1) -> list[bytes] | list[None]:
        """The next messages of the frozen state's stream, after its head; at its end None.

        In so many parts (`inline_pieces`), each of them None at the end.
        """
        with self._changed:
            rows = [] if self._frozen is None else self._frozen.take()
            self._changed.notify_all()  # an insert may have waited for room
        if not rows:
            self._frozen = None
            return [None] * n_parts
        return split(b"".join(map(encode_rows, rows)), n_parts)

    def drop_frozen(self) -> None:
        """Nobody asks for the rest: inserts need not wait for it."""
        with self._changed:
            if self._frozen is not None:
                self._frozen.release()
            self._frozen = None
            self._changed.notify_all()

    def restore_piece(self, *parts: bytes) -> None:
        """The next messages, in parts, of a stream that `end_restore` completes."""
        if self._restoring is None:
            self._restoring = self._core.restoring()
        with self._changed:
            self._restoring.take(join(parts))

    def end_restore(self) -> None:
        """Become what the pieces told of."""
        restoring, self._restoring = self._restoring or self._core.restoring(), None
        with self._changed:
            restoring.end()


def remote_replay_class() -> Any:
    """The Ray actor class of `ReplayServerShell`: one thread for each side and one for control."""
    options: dict[str, Any] = {
        "concurrency_groups": {"insert": 1, "sample": 1},
        "max_restarts": 0,
    }
    return ray.remote(**options)(ReplayServerShell)
