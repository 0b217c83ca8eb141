"""One replay shard: storage, sampler, rate limiter and the ledger of chunks, in one pure object.

The Ray shell (`remote.py`) and the local runtime call it; it never blocks and reads no clock. Who
must wait is decided by `can_insert` and `can_sample`, which callers ask first.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import numpy as np

from qfleet.common.errors import CheckpointError, ConfigError, InvariantError, ReplayNotReadyError
from qfleet.common.pixels.stored_columns import stored_columns
from qfleet.common.seeding import generator
from qfleet.common.types import (
    ACTION,
    Array,
    Capture,
    Columns,
    EnvironmentSpec,
    InsertAck,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
    check_columns,
)
from qfleet.replay_server.chunk_ledger import ACCEPTED, DUPLICATE, ChunkLedger
from qfleet.replay_server.framed_rows import FramedRows
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import RatioLimiter
from qfleet.replay_server.sampler import check_td_errors
from qfleet.replay_server.samplers import make_sampler
from qfleet.replay_server.shard_counters import ShardCounters
from qfleet.replay_server.storage import RingStorage

CAPTURE_STEP_BYTES = 256 * 1024
"""A checkpoint's copy pauses after so many bytes: a tenth of a millisecond each."""

_STORAGE = "storage."
_SAMPLER = "sampler."


class ReplayShard:
    """A part of the replay memory, written by some actor slots and read by the learner.

    Owned by one process and not thread-safe. `inserted` counts the transitions accepted;
    inserted = size + evicted at all times.
    """

    def __init__(
        self,
        plan: ReplayPlan,
        spec: EnvironmentSpec,
        limiter: RatioLimiter,
        *,
        run_id: str,
        shard: int,
    ) -> None:
        self.shard = shard
        self.capacity = plan.capacity
        if limiter.min_size > self.capacity:
            raise ConfigError(
                f"min_size of a shard must be at most its capacity of {self.capacity}, "
                f"got {limiter.min_size} (replay.min_size_to_sample, replay.capacity)"
            )
        self._limiter = limiter
        self._storage = RingStorage(stored_columns(spec), self.capacity)
        self._framed = None if spec.frame_stack is None else FramedRows(spec, self._storage)
        self._sampler = make_sampler(plan, generator(plan.seed, "replay.sample", shard))
        self._ledger = ChunkLedger(run_id)
        self._counters = ShardCounters()

    @property
    def size(self) -> int:
        """Transitions held."""
        return self._storage.size

    @property
    def env_steps(self) -> int:
        """Env steps of all accepted chunks."""
        return sum(self._counters.env_steps_by_slot.values())

    @property
    def episodes(self) -> int:
        """Episodes that ended in accepted chunks."""
        return sum(self._counters.episodes_by_slot.values())

    @property
    def env_steps_by_slot(self) -> dict[int, int]:
        """Env steps of each actor slot's accepted chunks, over all its incarnations."""
        return dict(self._counters.env_steps_by_slot)

    @property
    def episodes_by_slot(self) -> dict[int, int]:
        """Episodes in each actor slot's accepted chunks, over all its incarnations."""
        return dict(self._counters.episodes_by_slot)

    def insert(self, chunk: TransitionChunk, now_s: float) -> InsertAck:
        """Store a chunk unless it has been stored before or comes from the wrong actor.

        Does not ask the rate limiter: callers hold a chunk back while `can_insert` says no.

        Raises:
            InvariantError: when the columns are not a transition's; nothing was changed.
            ValueError: when priorities are negative or not finite; nothing was changed.
        """
        self._check_chunk(chunk)
        status = self._ledger.admit(chunk.chunk_id)
        if status == ACCEPTED:
            self._store(chunk, now_s)
        elif status == DUPLICATE:
            self._counters.duplicate_chunks += 1
        else:
            self._counters.rejected_transitions += len(chunk)
        is_ours = status in (ACCEPTED, DUPLICATE)
        hwm = self._ledger.hwm(chunk.chunk_id.actor_slot) if is_ours else -1
        return InsertAck(status, hwm, self._limiter.credits(*self._limiter_counts()))

    def _check_chunk(self, chunk: TransitionChunk) -> None:
        check_columns(chunk.columns, self._storage.specs, len(chunk))
        if self._framed is not None:
            self._framed.check(chunk)
        if chunk.priorities is not None:
            if chunk.priorities.shape != (len(chunk),):
                raise ValueError(f"priorities must be float64 [{len(chunk)}], one per transition")
            check_td_errors(chunk.priorities)

    def _store(self, chunk: TransitionChunk, now_s: float) -> None:
        counters, slot = self._counters, chunk.chunk_id.actor_slot
        columns, errors = chunk.columns, chunk.priorities
        if self._framed is not None:
            columns, is_kept = self._framed.take_in(chunk)
            errors = None if errors is None else errors[is_kept]
            counters.rejected_transitions += len(chunk) - len(columns[ACTION])
        # Of a chunk larger than the ring only the last rows are there to be drawn.
        keys = self._storage.append(columns, now_s)[-self.capacity :]
        errors = None if errors is None else errors[-self.capacity :]
        self._sampler.on_insert(keys % self.capacity, errors)
        counters.inserted += len(columns[ACTION])
        steps, episodes = counters.env_steps_by_slot, counters.episodes_by_slot
        steps[slot] = steps.get(slot, 0) + chunk.env_steps
        episodes[slot] = episodes.get(slot, 0) + len(chunk.episodes)

    def fence(self, slot: int, incarnation: int) -> None:
        """Refuse chunks of actor slot `slot` whose incarnation is below this one from now on."""
        self._ledger.fence(slot, incarnation)

    def can_insert(self, n: int) -> bool:
        """Whether the rate limiter lets a chunk of n transitions in now."""
        return self._limiter.can_insert(*self._limiter_counts(), n)

    def can_sample(self, n: int) -> bool:
        """Whether the rate limiter allows n draws now."""
        return self._limiter.can_sample(self.size, *self._limiter_counts(), n)

    def explain_limiter(self) -> str:
        """The limiter's counts in one line, for the message of a wait that timed out."""
        return f"shard {self.shard}: {self._limiter.explain(self.size, *self._limiter_counts())}"

    def _limiter_counts(self) -> tuple[int, int]:
        counters = self._counters
        inserted = counters.inserted - counters.limiter_inserted_base
        return inserted, counters.sampled - counters.limiter_sampled_base

    def sample(self, n: int, now_s: float) -> ShardSample:
        """Draw n items independently; does not ask the rate limiter.

        Raises:
            ReplayNotReadyError: when the shard is empty.
        """
        if self.size == 0:
            raise ReplayNotReadyError(f"replay shard {self.shard} is empty")
        slots, probabilities = self._sampler.sample(n, self.size)
        self._counters.sampled += n
        inserted_at_s = float(self._storage.inserted_at_s.take(slots).sum()) / max(1, n)
        return ShardSample(
            shard=self.shard,
            columns=self._gather(slots),
            item_keys=self._storage.keys_at(slots),
            probabilities=probabilities,
            stats=self.stats(),
            mean_age_s=now_s - inserted_at_s if n else 0.0,
        )

    def _gather(self, slots: Array) -> Columns:
        columns = self._storage.gather(slots)
        return columns if self._framed is None else self._framed.unfold(columns)

    def update_priorities(self, update: PriorityUpdate) -> int:
        """Apply new |TD errors| and return how many; items overwritten since are only counted.

        Raises:
            ValueError: when one is negative or not finite; nothing was changed.
        """
        keys, errors = update.item_keys, update.td_errors_abs
        if keys.shape != errors.shape:
            raise ValueError(f"{keys.shape} item keys came with {errors.shape} TD errors")
        is_current = self._storage.is_current(keys)
        applied = int(np.count_nonzero(is_current))
        if applied < len(keys):
            check_td_errors(errors)  # the sampler checks those it gets
            keys, errors = keys[is_current], errors[is_current]
            self._counters.dropped_priority_updates += len(is_current) - applied
        self._sampler.update(self._storage.slots_of(keys), errors)
        return applied

    def stats(self) -> ReplayStats:
        """The counters as they are now."""
        counters = self._counters
        return ReplayStats(
            size=self.size,
            inserted=counters.inserted,
            sampled=counters.sampled,
            evicted=counters.inserted - self.size,
            mass=self._sampler.mass,
            duplicate_chunks=counters.duplicate_chunks,
            rejected_transitions=counters.rejected_transitions,
            dropped_priority_updates=counters.dropped_priority_updates,
            gap_chunks=self._ledger.gap_chunks,
            env_steps=self.env_steps,
            episodes=self.episodes,
        )

    def capture(self, contents: bool = True) -> Capture:
        """The whole state; without `contents`, all but the transitions and their priorities."""
        steps = self.capture_in_steps(contents)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                return cast("Capture", finished.value)

    def capture_in_steps(self, contents: bool = True) -> Generator[None, None, Capture]:
        """The state as of the first `next`, copied in steps between which anything may happen."""
        sampler = self._sampler.capture(contents)
        meta = {
            "shard": self.shard,
            "counters": self._counters.capture(),
            "ledger": self._ledger.capture(),
            "storage": self._storage.capture_meta(contents),
            "sampler": sampler.meta,
        }
        arrays = {_SAMPLER + name: array for name, array in sampler.arrays.items()}
        if contents:
            frozen = self._storage.freeze()
            rows = max(1, CAPTURE_STEP_BYTES // self._storage.row_bytes)
            while not frozen.is_complete:
                frozen.advance(rows)
                yield
            arrays |= {_STORAGE + name: array for name, array in frozen.copies.items()}
        return Capture(meta, arrays)

    def restore(self, capture: Capture) -> None:
        """Become the captured shard; a capture without contents gives an empty one.

        An empty one first fills to `min_size` again, and its limiter counts from there: neither a
        burst of samples nor a standstill follows. Keys of forgotten transitions stay refused.

        Raises:
            CheckpointError: naming all that differs; nothing was changed.
        """
        storage = _part(capture, "storage", _STORAGE)
        differing = self._storage.differences(storage)
        if capture.meta["shard"] != self.shard:
            differing.insert(0, f"shard is {capture.meta['shard']}, here {self.shard}")
        if differing:
            raise CheckpointError(f"replay shard {self.shard} does not fit: {'; '.join(differing)}")
        self._sampler.restore(_part(capture, "sampler", _SAMPLER))
        self._storage.restore(storage)
        self._ledger.restore(capture.meta["ledger"])
        self._counters = counters = ShardCounters.restored(capture.meta["counters"])
        if not storage.meta["contents"]:
            counters.limiter_inserted_base = counters.inserted
            counters.limiter_sampled_base = counters.sampled

    def check_valid(self) -> None:
        """Raise `InvariantError` unless all parts are valid and agree with one another."""
        self._storage.check_valid()
        if self._framed is not None:
            self._framed.check_valid()
        self._sampler.check_valid(self.size)
        self._ledger.check_valid()
        counters = self._counters
        if not self.size <= counters.inserted <= self._storage.appended:
            given = self._storage.appended
            raise InvariantError(f"{counters.inserted} inserted, {self.size} held, {given} keys")
        if min(self._limiter_counts()) < 0:
            raise InvariantError(f"limiter counts {self._limiter_counts()} are negative")


def _part(capture: Capture, key: str, prefix: str) -> Capture:
    """The capture of one part, with its prefix taken off its arrays."""
    names = [name for name in capture.arrays if name.startswith(prefix)]
    arrays = {name.removeprefix(prefix): capture.arrays[name] for name in names}
    return Capture(capture.meta[key], arrays)
