"""Ray shell of a replay shard: an asyncio actor, so that a held-back call costs no thread.

Created by the composition root alone. All methods run on one event loop, one at a time between
awaits, so the core needs no lock. What the rate limiter holds back waits here and is answered
`blocked` after a while, so that no caller waits without an answer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import ray

from qfleet.common.config import Config
from qfleet.common.errors import WireFormatError
from qfleet.common.messages import decode_chunk, decode_priority_update, encode_shard_sample
from qfleet.common.threads import limit_threads
from qfleet.common.types import Capture, EnvironmentSpec, EpisodeSummary
from qfleet.common.wire import decode_capture, encode_capture_buffer
from qfleet.replay_server.build import build_shard

HOLD_BACK_S = 2.0
"""How long the limiter holds a call back before it is answered `blocked`."""


class ReplayServerShell:
    """One shard's process; becomes a Ray actor through `remote_replay_class`."""

    def __init__(
        self, config_json: str, spec_json: str, run_id: str, shard: int, num_cpus: float
    ) -> None:
        limit_threads(num_cpus)
        config = Config.model_validate_json(config_json)
        self._spec = EnvironmentSpec.from_json(spec_json)
        self._shard = shard
        self._core = build_shard(config, self._spec, run_id=run_id, shard=shard)
        self._changed: asyncio.Condition | None = None
        self._episodes: list[EpisodeSummary] = []
        self._malformed_chunks: dict[str, int] = {}
        self._gate_is_open = False
        self._insert_blocked_s = 0.0
        self._sample_blocked_s = 0.0

    async def ready(self) -> int:
        """This process's id, once it can answer."""
        return os.getpid()

    async def open_gate(self) -> None:
        """The run ends: the limiter holds nothing back any more, so no caller is left waiting."""
        self._gate_is_open = True
        await self._notify()

    async def _hold_back(self, limiter_allows: Callable[[], bool]) -> tuple[bool, float]:
        """Wait until the limiter allows it, at most `HOLD_BACK_S`; (allowed?, seconds waited)."""

        def allowed() -> bool:
            return self._gate_is_open or limiter_allows()

        if allowed():
            return True, 0.0
        if self._changed is None:
            self._changed = asyncio.Condition()
        started = time.monotonic()
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(allowed), HOLD_BACK_S)
            except TimeoutError:
                return False, time.monotonic() - started
        return True, time.monotonic() - started

    async def _notify(self) -> None:
        if self._changed is not None:
            async with self._changed:
                self._changed.notify_all()

    async def insert(self, data: bytes, wait: bool = True) -> list[Any]:
        """An `InsertAck` as a list; malformed bytes raise and leave the memory as it was."""
        try:
            chunk = decode_chunk(data, self._spec)
        except WireFormatError as error:
            reason = str(error)
            self._malformed_chunks[reason] = self._malformed_chunks.get(reason, 0) + 1
            raise
        if wait:
            rows = len(chunk)
            allowed, waited = await self._hold_back(lambda: self._core.can_insert(rows))
            self._insert_blocked_s += waited
            if not allowed:
                return ["blocked", -1, 0]
        ack = self._core.insert(chunk, time.time())
        if ack.status == "accepted":
            self._episodes.extend(chunk.episodes)
        await self._notify()
        return list(ack)

    async def sample(self, n_draws: int, wait: bool = True) -> bytes | None:
        """A `ShardSample` as bytes, or None when the limiter still holds it back."""
        if wait:
            allowed, waited = await self._hold_back(lambda: self._core.can_sample(n_draws))
            self._sample_blocked_s += waited
            if not allowed:
                return None
        if self._gate_is_open and self._core.size == 0:
            return None
        # Wall time: ages must mean something after a restore on another host.
        sample = self._core.sample(n_draws, time.time())
        await self._notify()
        return encode_shard_sample(sample)

    async def update_priorities(self, data: bytes) -> int:
        """Apply new |TD errors|; returns how many keys were still current."""
        return self._core.update_priorities(decode_priority_update(data))

    async def stats(self) -> list[Any]:
        """`ReplayStats` as a list."""
        return list(self._core.stats())

    async def report(self) -> dict[str, Any]:
        """Counters, and the episodes that arrived since the previous report."""
        episodes, self._episodes = self._episodes, []
        return {
            "shard": self._shard,
            "pid": os.getpid(),
            "stats": list(self._core.stats()),
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
            "malformed_chunks": dict(self._malformed_chunks),
            "insert_blocked_s": self._insert_blocked_s,
            "sample_blocked_s": self._sample_blocked_s,
        }

    async def fence(self, slot: int, incarnation: int) -> None:
        """Refuse chunks of earlier incarnations of `slot` from now on."""
        self._core.fence(slot, incarnation)

    async def capture(self, contents: bool) -> list[Any]:
        """A reference to the core's state as `uint8 [n]`, in a list so that Ray leaves it one.

        The state is that of the moment of the call. Its rows are copied in steps, and it is encoded
        and stored in a thread: inserts and samples go on meanwhile. Without contents it holds only
        counters and ledger.
        """
        steps = self._core.capture_in_steps(contents)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                frozen: Capture = finished.value
                break
            await asyncio.sleep(0)
        buffer = await asyncio.to_thread(encode_capture_buffer, frozen)
        return [await asyncio.to_thread(ray.put, buffer)]

    async def restore(self, data: bytes) -> None:
        """The inverse of `capture`."""
        self._core.restore(decode_capture(data))


def remote_replay_class() -> Any:
    """The Ray actor class of `ReplayServerShell`."""
    return ray.remote(max_restarts=0)(ReplayServerShell)
