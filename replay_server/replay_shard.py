"""One replay shard: storage, sampler, rate limiter and the ledger of chunks, in one pure object.

The Ray shell (`remote.py`) and the local runtime call it; it never blocks and reads no clock. Who
must wait is decided by `can_insert` and `can_sample`, which callers ask first.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.arrays_check import check_columns
from qfleet.common.errors import ConfigError, InvariantError, ReplayNotReadyError
from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.pixels.stored_columns import held_columns, stored_columns
from qfleet.common.seeding import generator
from qfleet.common.types import (
    ACTION,
    ChunkId,
    Columns,
    EnvironmentSpec,
    InsertAck,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
)
from qfleet.replay_server.arrivals import Arrival
from qfleet.replay_server.chunk_ledger import (
    ACCEPTED,
    DUPLICATE,
    STALE_INCARNATION,
    ChunkLedger,
)
from qfleet.replay_server.framed_rows import FramedRows
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import RatioLimiter
from qfleet.replay_server.sampler import check_td_errors
from qfleet.replay_server.samplers import make_sampler
from qfleet.replay_server.shard_capture import (
    FrozenShard,
    RestoringShard,
    ShardParts,
    freeze_parts,
)
from qfleet.replay_server.shard_counters import ShardCounters
from qfleet.replay_server.slot_records import SlotRecords
from qfleet.replay_server.storage import RingStorage


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
        self._chunk_columns = stored_columns(spec)
        self._storage = RingStorage(held_columns(spec), self.capacity)
        self._framed = (
            None if spec.frame_stack is None else FramedRows(spec, self._storage, plan.compression)
        )
        self._sampler = make_sampler(plan, generator(plan.seed, "replay.sample", shard))
        self._ledger = ChunkLedger(run_id)
        self._counters = ShardCounters()
        self._parts = ShardParts(
            shard, self._storage, self._framed, self._sampler, self._ledger, self._counters
        )
        self._cut = FrozenShard({}, {}, [])

    @property
    def size(self) -> int:
        """Transitions held."""
        return self._storage.size

    @property
    def slots(self) -> SlotRecords:
        """What each actor slot has played and acted with."""
        return self._counters.slots

    @property
    def arrivals(self) -> list[Arrival]:
        """What has come of each incarnation's transitions."""
        return self._counters.arrivals.listed()

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
            if status == STALE_INCARNATION:
                self._counters.arrivals.refused(chunk)
        is_ours = status in (ACCEPTED, DUPLICATE)
        hwm = self._ledger.hwm(chunk.chunk_id.actor_slot) if is_ours else -1
        return InsertAck(status, hwm, self._limiter.credits(*self._limiter_counts()))

    def _check_chunk(self, chunk: TransitionChunk) -> None:
        check_columns(chunk.columns, self._chunk_columns, len(chunk))
        if self._framed is not None and self.is_new(chunk.chunk_id):
            self._framed.check(chunk)
        if chunk.priorities is not None:
            if chunk.priorities.shape != (len(chunk),):
                raise ValueError(f"priorities must be float64 [{len(chunk)}], one per transition")
            check_td_errors(chunk.priorities)

    def _store(self, chunk: TransitionChunk, now_s: float) -> None:
        columns, errors = chunk.columns, chunk.priorities
        if self._framed is not None:
            columns, is_kept = self._framed.take_in(chunk)
            errors = None if errors is None else errors[is_kept]
            self._counters.rejected_transitions += len(chunk) - len(columns[ACTION])
        # Of a chunk larger than the ring only the last rows are there to be drawn.
        keys = self._storage.append(columns, now_s)[-self.capacity :]
        errors = None if errors is None else errors[-self.capacity :]
        self._sampler.on_insert(keys % self.capacity, errors)
        self._counters.inserted += len(columns[ACTION])
        self.slots.accepted(chunk, len(columns[ACTION]))
        self._counters.arrivals.stored(chunk, len(columns[ACTION]))

    def fence(self, slot: int, incarnation: int) -> None:
        """Refuse chunks of actor slot `slot` whose incarnation is below this one from now on."""
        self._ledger.fence(slot, incarnation)

    def begin_at(self, slot: int, incarnation: int, seq: int) -> None:
        """Await no chunk of that incarnation below `seq`: a predecessor of this shard had them."""
        self._ledger.begin_at(slot, incarnation, seq)

    def is_new(self, chunk_id: ChunkId) -> bool:
        """Whether a chunk of this name would be stored; others never wait for the limiter."""
        return self._ledger.status_of(chunk_id) == ACCEPTED

    def comes_early(self, chunk_id: ChunkId) -> bool:
        """Whether chunks that were sent before this one have not come."""
        return self._ledger.comes_early(chunk_id)

    def can_insert(self, n: int) -> bool:
        """Whether the rate limiter lets n transitions in now, and a cut under way has room."""
        has_room = self._storage.has_room(n) and (
            self._framed is None or self._framed.pool.has_room()
        )
        return has_room and self._limiter.can_insert(*self._limiter_counts(), n)

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

    def sample(self, n: int, now_s: float, *, reader: FrameReader | None = None) -> ShardSample:
        """Draw n items with replacement; does not ask the rate limiter.

        `reader`: stacks are places, with the frames that it is not known to have.

        Raises:
            ReplayNotReadyError: when the shard is empty.
        """
        if self.size == 0:
            raise ReplayNotReadyError(f"replay shard {self.shard} is empty")
        slots, probabilities = self._sampler.sample(n, self.size)
        self._counters.sampled += n
        columns = self._storage.gather(slots)
        inserted_at_s = float(self._storage.inserted_at_s.take(slots).sum()) / max(1, n)
        return ShardSample(
            shard=self.shard,
            columns=self._unfolded(columns) if reader is None else columns,
            item_keys=self._storage.keys_at(slots),
            probabilities=probabilities,
            stats=self.stats(),
            mean_age_s=now_s - inserted_at_s if n else 0.0,
            new_frames=self._framed.new_frames(columns, reader)
            if reader and self._framed
            else None,
        )

    def _unfolded(self, columns: Columns) -> Columns:
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
            env_steps=self.slots.env_steps,
            episodes=self.slots.episodes,
        )

    def freeze(self, contents: bool = True) -> FrozenShard:
        """The state as of now, to be given out while anything may happen to the shard.

        Without `contents`, all but the transitions and their priorities. An earlier one that was
        not given out to its end is given up.
        """
        self._cut.release()
        self._cut = freeze_parts(self._parts, contents)
        return self._cut

    def restoring(self) -> RestoringShard:
        """Takes a frozen shard's stream, one part after the other, and becomes that shard."""
        return RestoringShard(self._parts)

    def check_valid(self) -> None:
        """Raise `InvariantError` unless all parts are valid and agree with one another."""
        self._storage.check_valid()
        if self._framed is not None:
            self._framed.check_valid()
        self._sampler.check_valid(self.size)
        self._ledger.check_valid()
        self.slots.check_valid()
        counters = self._counters
        if not self.size <= counters.inserted <= self._storage.appended:
            given = self._storage.appended
            raise InvariantError(f"{counters.inserted} inserted, {self.size} held, {given} keys")
        played = sum(slot.transitions for slot in self.slots.stats())
        if played != counters.inserted:
            raise InvariantError(f"{counters.inserted} inserted, {played} counted by slot")
        if min(self._limiter_counts()) < 0:
            raise InvariantError(f"limiter counts {self._limiter_counts()} are negative")
