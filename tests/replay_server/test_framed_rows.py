"""Frames stored once against a replay that keeps every stack in full, on random episodes.

One side is the actor's trail and n-step windows, chunks, and a shard; the other the same windows
over whole stacks in a Python list. Both see the same random environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.actors.frame_trail import FrameTrail
from qfleet.actors.n_step import NStepAccumulator
from qfleet.common.capture_stream import ArrayFiller
from qfleet.common.errors import InvariantError
from qfleet.common.messages import decode_chunk, encode_chunk
from qfleet.common.pixels.frame_stack import FrameStack
from qfleet.common.pixels.new_frames import FrameReader
from qfleet.common.pixels.stored_columns import STACKS, held_columns, stored_columns
from qfleet.common.types import (
    ACTION,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    ChunkId,
    Columns,
    EnvironmentSpec,
    TransitionChunk,
)
from qfleet.common.vector_envs import StepResult
from qfleet.replay_server import frame_pool
from qfleet.replay_server.build import build_shard
from qfleet.replay_server.chunk_ledger import ACCEPTED, DUPLICATE
from qfleet.replay_server.frame_pool import FramePool
from qfleet.replay_server.frame_stores import Compression, ZlibFrames
from qfleet.replay_server.framed_rows import FramedRows
from qfleet.replay_server.frozen_frames import FrozenFrames
from qfleet.replay_server.frozen_rows import FrozenRows
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.replay_shard import ReplayShard
from qfleet.replay_server.storage import RingStorage

SHAPE = (2, 3)
DISCOUNT = 0.9


def framed_spec(depth: int) -> EnvironmentSpec:
    return EnvironmentSpec("E", (depth, *SHAPE), "|u1", 3, None, None, frame_stack=depth)


class RandomPixels:
    """E sub-environments of noise whose episodes end at random, in either reset mode."""

    def __init__(self, n_envs: int, depth: int, mean_length: float, same_step: bool, seed: int):
        self.rng = np.random.default_rng(seed)
        self.n_envs, self.mean_length, self.same_step = n_envs, mean_length, same_step
        self.stack = FrameStack(depth)
        self.awaits_reset = np.zeros(n_envs, dtype=bool)
        self.observations = self.stack.started(self._frames())

    def _frames(self) -> Array:
        return self.rng.integers(0, 256, (self.n_envs, *SHAPE), dtype=np.uint8)

    def step(self) -> StepResult:
        ends = self.rng.random((2, self.n_envs)) < 0.5 / self.mean_length
        terminated, truncated = ends & ~self.awaits_reset
        successors = self.stack.followed(self.observations, self._frames(), self.awaits_reset)
        observations, is_transition = successors, ~self.awaits_reset
        ended = terminated | truncated
        if self.same_step and ended.any():
            observations = successors.copy()
            observations[ended] = self.stack.started(self._frames())[ended]
        elif not self.same_step:
            self.awaits_reset = ended
        self.observations = observations
        rewards = self.rng.normal(size=self.n_envs)
        return StepResult(successors, rewards, terminated, truncated, is_transition, observations)


@dataclass
class Writer:
    """An actor's part, with numbers and in full."""

    spec: EnvironmentSpec
    env: RandomPixels
    n_step: int
    slot: int
    incarnation: int = 0
    seq: int = 0
    rows: list[Columns] = field(default_factory=list)
    full: list[Columns] = field(default_factory=list)

    def __post_init__(self) -> None:
        depth = self.spec.frame_stack
        assert depth is not None
        full = EnvironmentSpec("E", self.spec.observation_shape, "|u1", 3, None, None)
        self.by_number = NStepAccumulator(self.env.n_envs, self.n_step, DISCOUNT, self.spec)
        self.in_full = NStepAccumulator(self.env.n_envs, self.n_step, DISCOUNT, full)
        self.trail = FrameTrail(self.env.n_envs, depth, self.n_step)
        self.trail.start(self.env.observations)

    def step(self) -> None:
        before, numbers = self.env.observations, self.trail.numbers
        actions = self.env.rng.integers(0, 3, self.env.n_envs, dtype=np.int32)
        result = self.env.step()
        full = self.in_full.push(before, actions, result)
        rows = self.by_number.push(numbers, actions, self.trail.follow(result))
        self.trail.check_valid()
        if full is not None and rows is not None:
            self.full.append(full)
            self.rows.append(rows)

    def chunk(self) -> tuple[TransitionChunk, Columns]:
        """The next chunk, through the wire, and the same rows in full."""
        empty = {c.name: np.empty((0, *c.shape), c.dtype) for c in stored_columns(self.spec)}
        rows = {n: np.concatenate([empty[n], *(r[n] for r in self.rows)]) for n in empty}
        unfolded = self.trail.unfold(rows)
        full = {n: np.concatenate([unfolded[n][:0], *(r[n] for r in self.full)]) for n in empty}
        for name in empty:  # what the actor's own networks see for priorities
            np.testing.assert_array_equal(unfolded[name], full[name])
        self.rows, self.full = [], []
        chunk_id = ChunkId("r", self.slot, self.incarnation, self.seq)
        self.seq += 1
        chunk = TransitionChunk(chunk_id, rows, None, 1, 0, (), self.trail.take_run())
        return decode_chunk(encode_chunk(chunk), self.spec), full


class Memory:
    """Ring and pool as a shard holds them, beside a list of whole rows."""

    def __init__(
        self, spec: EnvironmentSpec, capacity: int, compression: Compression = "none"
    ) -> None:
        self.storage = RingStorage(held_columns(spec), capacity)
        self.framed = FramedRows(spec, self.storage, compression)
        self.naive: list[dict[str, Array]] = []
        self.left_out = 0
        self.rng = np.random.default_rng(capacity)
        self.reader = FrameReader("r")
        self.kept: dict[int, Array] = {}
        """What a reader has that is sent each frame once; some answers do not come."""

    def insert(self, chunk: TransitionChunk, full: Columns) -> None:
        self.framed.check(chunk)
        columns, is_kept = self.framed.take_in(chunk)
        self.storage.append(columns, 0.0)
        self.left_out += int(np.count_nonzero(~is_kept))
        for row in np.flatnonzero(is_kept):
            self.naive.append({name: full[name][row] for name in full})
        self.framed.check_valid()

    def check_equal(self) -> None:
        held = self.naive[-self.storage.capacity :]
        assert self.storage.size == len(held)
        if not held:
            return
        keys = np.arange(self.storage.appended - len(held), self.storage.appended)
        by_place = self.storage.gather(self.storage.slots_of(keys))
        rows = self.framed.unfold(by_place)
        for name, column in rows.items():
            np.testing.assert_array_equal(column, np.stack([row[name] for row in held]))
        self.check_kept(by_place, rows)

    def check_kept(self, by_place: Columns, rows: Columns) -> None:
        """A reader that is told of some rows has each of their frames then, and got none twice."""
        some = slice(len(by_place[ACTION]) // 3, None)
        named = {name: by_place[name][some] for name in STACKS}
        while (news := self.framed.new_frames(named, self.reader)) and self.rng.random() < 0.3:
            pass  # that answer was lost
        self.reader = FrameReader("r", (news.answer,))
        assert news.n_places == len(self.framed.pool._frames) > news.places.max(initial=0)
        for place, frame in zip(news.places.tolist(), news.frames, strict=True):
            assert place not in self.kept or not np.array_equal(self.kept[place], frame)
            self.kept[place] = frame
        for name in STACKS:
            kept = [[self.kept[place] for place in row] for row in by_place[name][some].tolist()]
            np.testing.assert_array_equal(np.array(kept), rows[name][some])


@settings(max_examples=120, deadline=None)
@given(
    depth=st.integers(1, 5),
    n_step=st.integers(1, 4),
    n_envs=st.integers(1, 4),
    n_writers=st.integers(1, 3),
    mean_length=st.sampled_from([1.0, 2.0, 8.0, 50.0]),
    same_step=st.booleans(),
    capacity=st.integers(1, 60),
    lost=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**31),
    compression=st.sampled_from(["none", "zlib"]),
)
def test_framed_rows_equal_a_naive_replay(
    depth: int,
    n_step: int,
    n_envs: int,
    n_writers: int,
    mean_length: float,
    same_step: bool,
    capacity: int,
    lost: float,
    seed: int,
    compression: Compression,
) -> None:
    """Wrap-around, short episodes, truncation, n > 1, several writers, chunks that never arrive."""
    spec = framed_spec(depth)
    rng = np.random.default_rng(seed)
    writers = [
        Writer(spec, RandomPixels(n_envs, depth, mean_length, same_step, seed + i), n_step, i)
        for i in range(n_writers)
    ]
    memory = Memory(spec, capacity, compression)

    for _ in range(25):
        writer = writers[rng.integers(n_writers)]
        for _ in range(rng.integers(1, 8)):
            writer.step()
        chunk, full = writer.chunk()
        if rng.random() >= lost:
            memory.insert(chunk, full)
            memory.check_equal()

    assert memory.left_out == 0 or lost


def stacks_at(pool: FramePool, places: Array) -> Array:
    stacks = np.empty((*places.shape, *pool.frames(0, 0).shape[1:]), dtype=np.uint8)
    pool.copy_stacks(places, stacks)
    return stacks


def writer_and_memory(
    capacity: int = 40, mean_length: float = 10.0, compression: Compression = "none"
) -> tuple[Writer, Memory]:
    spec = framed_spec(3)
    writer = Writer(spec, RandomPixels(2, 3, mean_length, False, 7), 2, 0)
    return writer, Memory(spec, capacity, compression)


BOTH = pytest.mark.parametrize("compression", ["none", "zlib"])


def play(writer: Writer, memory: Memory, n_chunks: int) -> None:
    for _ in range(n_chunks):
        for _ in range(5):
            writer.step()
        memory.insert(*writer.chunk())


def test_each_frame_travels_once() -> None:
    writer, _ = writer_and_memory(mean_length=1e9)
    frames, rows = 0, 0
    for _ in range(20):
        for _ in range(10):
            writer.step()
        chunk, _ = writer.chunk()
        assert chunk.frames is not None
        frames, rows = frames + len(chunk.frames.frames), rows + len(chunk)

    assert frames == 20 * 10 * 2 + 2  # one per env step, and two reset frames
    assert rows == 2 * (200 - 1)  # the last window of each is open


def test_pool_holds_a_frame_per_row_and_few_more() -> None:
    writer, memory = writer_and_memory(capacity=1_000, mean_length=1e9)

    play(writer, memory, 300)

    assert memory.storage.size == 1_000
    # The rows' own frames, the stacks before the oldest, the successors, the writer's last chunk.
    assert 1_000 <= memory.framed.pool.size <= 1_000 + 2 * (3 + 2) + 10
    assert memory.framed.pool.touched <= 1_000 + 40


def test_rows_after_a_lost_chunk_come_back_once_their_frames_are_known() -> None:
    writer, memory = writer_and_memory(capacity=1_000, mean_length=1e9)
    play(writer, memory, 2)
    for _ in range(5):
        writer.step()
    writer.chunk()  # never arrives

    play(writer, memory, 3)

    # Of each sub-environment the window that was open (n = 2), and three stacks with a lost frame.
    assert memory.left_out == 2 * (1 + 3)
    memory.check_equal()


def test_a_new_incarnation_sends_what_its_stacks_need() -> None:
    """A restored actor goes on with open windows whose frames another incarnation had sent."""
    writer, memory = writer_and_memory(capacity=1_000)
    play(writer, memory, 3)

    writer.incarnation, writer.seq = 1, 0
    restored = FrameTrail(2, 3, 2)
    restored.restore(writer.trail.capture())
    restored.send_again()
    writer.trail = restored
    play(writer, memory, 3)

    assert memory.left_out == 0
    memory.check_equal()


def test_frames_of_a_dead_writer_are_given_up_with_its_successor() -> None:
    writer, memory = writer_and_memory(capacity=4)
    play(writer, memory, 3)
    fresh, unused = writer_and_memory(capacity=4)
    fresh.incarnation = 1
    for _ in range(5):
        fresh.step()
    chunk, full = fresh.chunk()

    memory.insert(chunk, full)
    unused.insert(chunk, full)

    assert memory.framed.pool.size == unused.framed.pool.size
    memory.check_equal()


def test_a_repeated_run_is_refused() -> None:
    """The ledger of chunks answers repeated ones; one that came this far would corrupt numbers."""
    writer, memory = writer_and_memory()
    for _ in range(4):
        writer.step()
    chunk, full = writer.chunk()
    memory.insert(chunk, full)

    with pytest.raises(InvariantError, match=r"frames 0…9, .* do not follow frame 9 \(actor 0\)"):
        memory.insert(chunk, full)


def test_a_chunk_that_comes_after_its_successor_is_left_out() -> None:
    writer, memory = writer_and_memory()
    chunks = []
    for _ in range(3):
        for _ in range(4):
            writer.step()
        chunks.append(writer.chunk())

    for index in (0, 2, 1):
        memory.insert(*chunks[index])
        memory.check_equal()
    left_out = memory.left_out
    assert left_out >= len(chunks[1][0])
    play(writer, memory, 3)

    memory.check_equal()
    assert memory.left_out == left_out


def small_shard(spec: EnvironmentSpec, capacity: int) -> ReplayShard:
    plan = ReplayPlan(
        seed=3,
        num_cpus=0.5,
        capacity=capacity,
        sampling="uniform",
        compression="none",
        priority_exponent=1.0,
        priority_epsilon=1e-6,
        min_size_to_sample=1,
        samples_per_insert=None,
        limiter_tolerance_samples=1,
        largest_chunk_transitions=capacity,
        largest_request_samples=20,
    )
    return build_shard(plan, spec, run_id="r", shard=0)


def test_a_shard_takes_a_chunk_of_frames_once() -> None:
    """Its answer was late or lost, so the actor sent it again: a duplicate, not a mistake."""
    writer, _ = writer_and_memory()
    for _ in range(4):
        writer.step()
    chunk, _ = writer.chunk()
    shard = small_shard(writer.spec, 40)

    acks = [shard.insert(chunk, 0.0).status for _ in range(3)]

    assert acks == [ACCEPTED, DUPLICATE, DUPLICATE]
    assert shard.size == len(chunk)
    assert shard.stats().duplicate_chunks == 2
    shard.check_valid()


def test_a_chunk_without_frames_is_refused() -> None:
    writer, memory = writer_and_memory()
    writer.step()
    chunk, full = writer.chunk()
    bare = TransitionChunk(chunk.chunk_id, chunk.columns, None, 1, 0)

    with pytest.raises(InvariantError, match="without its frames"):
        memory.insert(bare, full)


@BOTH
def test_a_pool_that_is_too_small_grows(compression: Compression) -> None:
    """Episodes of one step show two frames per row: more than was asked for at the start."""
    writer, memory = writer_and_memory(4_000, 0.5, compression)
    asked = len(memory.framed.pool._frames)

    for _ in range(6):
        for _ in range(700):
            writer.step()
        memory.insert(*writer.chunk())

    assert len(memory.framed.pool._frames) > asked
    memory.check_equal()


@BOTH
@pytest.mark.parametrize("frames_at_once", [1, 3, 1000])
def test_cut_beside_inserts_is_that_of_its_moment(
    frames_at_once: int, compression: Compression
) -> None:
    """Rows and the frames they name are read in turns with inserts, and fit together."""
    writer, memory = writer_and_memory(20, compression=compression)
    play(writer, memory, 6)
    pool, storage = memory.framed.pool, memory.storage
    expected = [stacks_at(pool, column) for column in memory.framed.places_named()]
    meta, counters = pool.meta(), storage.capture_meta(contents=True)
    copy = Memory(framed_spec(3), 20, compression)
    filler = ArrayFiller(
        {**copy.storage.restored_arrays(counters), **copy.framed.begin_restore(meta)}
    )
    parts: list[FrozenRows | FrozenFrames] = [storage.freeze(), memory.framed.freeze()]

    for part in parts:
        while rows := part.take(frames_at_once * pool.frame_bytes):
            for piece in rows:
                filler.put(piece)
            play(writer, memory, 1)
        part.release()
    filler.check_complete()
    copy.storage.end_restore(counters)
    copy.framed.end_restore(meta)

    for column, stacks in zip(copy.framed.places_named(), expected, strict=True):
        np.testing.assert_array_equal(stacks_at(copy.framed.pool, column), stacks)
    copy.framed.check_valid()
    memory.framed.check_valid()
    memory.check_equal()


def test_frames_that_were_read_are_given_again_while_the_cut_goes_on() -> None:
    writer, memory = writer_and_memory(capacity=20)
    play(writer, memory, 6)
    pool = memory.framed.pool
    frozen = memory.framed.freeze()
    frozen.take(10**9)
    frozen.take(10**9)

    play(writer, memory, 20)

    assert pool._n_held == 0
    assert pool.touched < 4 * 20


def test_frames_freed_before_they_were_read_are_counted_and_given_back_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, memory = writer_and_memory(capacity=20)
    play(writer, memory, 6)
    pool = memory.framed.pool
    frozen = memory.framed.freeze()
    assert pool.has_room()
    play(writer, memory, 10)
    assert pool._n_held > 10
    monkeypatch.setattr(frame_pool, "HELD_BYTES", 10 * pool.frame_bytes)
    assert not pool.has_room()
    size = pool.size

    frozen.release()

    assert pool.has_room()
    assert pool.size == size
    memory.framed.check_valid()


@BOTH
def test_restored_pool_goes_on_as_the_first(compression: Compression) -> None:
    writer, memory = writer_and_memory(20, compression=compression)
    play(writer, memory, 6)
    copy = Memory(framed_spec(3), 20, compression)
    copy.naive = list(memory.naive)
    meta, counters = memory.framed.pool.meta(), memory.storage.capture_meta(contents=True)
    arrays = {**copy.storage.restored_arrays(counters), **copy.framed.begin_restore(meta)}
    filler = ArrayFiller(arrays)
    for part in (memory.storage.freeze(), memory.framed.freeze()):
        while rows := part.take(10**9):
            for piece in rows:
                filler.put(piece)
    copy.storage.end_restore(counters)

    copy.framed.end_restore(meta)

    copy.framed.check_valid()
    copy.check_equal()
    play(writer, copy, 6)
    copy.check_equal()
    assert copy.left_out == 0


def test_restore_without_frames_is_empty_and_takes_chunks() -> None:
    writer, memory = writer_and_memory(capacity=20)
    play(writer, memory, 6)
    counters = memory.storage.capture_meta(contents=False)

    memory.storage.restored_arrays(counters)
    assert memory.framed.begin_restore(None) == {}
    memory.storage.end_restore(counters)
    memory.framed.end_restore(None)

    assert memory.framed.pool.size == 0
    memory.framed.check_valid()


def test_columns_hold_numbers_of_frames() -> None:
    named = {column.name: column for column in stored_columns(framed_spec(3))}

    held = {column.name: column for column in held_columns(framed_spec(3))}
    assert named[OBSERVATION] == (OBSERVATION, "<i8", (3,))
    assert named[NEXT_OBSERVATION] == (NEXT_OBSERVATION, "<i8", (3,))
    assert held[NEXT_OBSERVATION] == (NEXT_OBSERVATION, "<i4", (3,))
    assert named[ACTION] == held[ACTION] == (ACTION, "<i4", ())


def test_compressed_frames_take_the_bytes_of_what_they_show() -> None:
    store = ZlibFrames(4, (84, 84))
    game = np.zeros((2, 84, 84), np.uint8)
    game[:, 40:44, 10:14] = 200

    store.put(np.array([0, 2]), game)

    assert store.packed_bytes < 2 * 84 * 84 / 20
    out = np.zeros((3, 84 * 84), np.uint8)
    store.copy(np.array([2, 0, 2]), out)
    np.testing.assert_array_equal(out.reshape(3, 84, 84), game[[0, 0, 0]])


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 4),
    n_step=st.integers(1, 3),
    mean_length=st.sampled_from([2.0, 8.0, 50.0]),
    capacity=st.integers(5, 60),
    seed=st.integers(0, 2**31),
)
def test_chunks_that_come_late_and_twice_leave_the_rows_of_a_naive_replay(
    depth: int, n_step: int, mean_length: float, capacity: int, seed: int
) -> None:
    """Each drawn row is the one that was played, recognized by its return, a random number.

    Chunks of two writers cross each other, a few come again at any later time, and one that was
    overtaken by its successor comes after it.
    """
    spec = framed_spec(depth)
    rng = np.random.default_rng(seed)
    writers = [
        Writer(spec, RandomPixels(2, depth, mean_length, False, seed + slot), n_step, slot)
        for slot in range(2)
    ]
    shard = small_shard(spec, capacity)
    played: dict[float, dict[str, Array]] = {}
    sent: list[TransitionChunk] = []
    waiting: list[TransitionChunk] = []
    n_rows = 0
    for _ in range(25):
        writer = writers[rng.integers(2)]
        for _ in range(rng.integers(1, 6)):
            writer.step()
        chunk, full = writer.chunk()
        for row in range(len(chunk)):
            played[float(full[N_STEP_RETURN][row])] = {name: full[name][row] for name in full}
        waiting.append(chunk)
        if rng.random() < 0.3:
            continue  # the next one overtakes it
        for one in reversed(waiting):
            assert shard.insert(one, 0.0).status == ACCEPTED
            n_rows += len(one)
            sent.append(one)
        waiting = []
        again = sent[rng.integers(len(sent))]
        assert shard.insert(again, 0.0).status == DUPLICATE
        shard.check_valid()
        if shard.size:
            columns = shard.sample(20, 0.0).columns
            for row, key in enumerate(columns[N_STEP_RETURN]):
                for name, value in played[float(key)].items():
                    np.testing.assert_array_equal(columns[name][row], value)
    stats = shard.stats()
    assert stats.inserted + stats.rejected_transitions == n_rows
    assert stats.size == min(stats.inserted, capacity)
