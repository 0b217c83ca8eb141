"""The shard as a whole: exactly-once inserts, draws, priorities, counters and captures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common.capture_stream import decode_capture, encode_capture, encode_rows, messages
from qfleet.common.errors import CheckpointError, ConfigError, InvariantError, ReplayNotReadyError
from qfleet.common.types import (
    ChunkId,
    EnvironmentSpec,
    EpisodeSummary,
    PriorityUpdate,
    TransitionChunk,
)
from qfleet.replay_server import frozen_rows, shard_capture
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import UNLIMITED_CREDITS, RatioLimiter
from qfleet.replay_server.replay_shard import ReplayShard

SPEC = EnvironmentSpec("CartPole-v1", (2,), "<f4", 2, 475.0, 500)
FREE = RatioLimiter(None, 1, 0)


def replay_plan(**changes) -> ReplayPlan:
    fields = {
        "seed": 3,
        "num_cpus": 0.5,
        "capacity": 8,
        "sampling": "prioritized",
        "compression": "none",
        "priority_exponent": 1.0,
        "priority_epsilon": 1e-6,
        "min_size_to_sample": 1,
        "samples_per_insert": None,
        "limiter_tolerance_samples": 1,
        "largest_chunk_transitions": 1,
        "largest_request_samples": 1,
    }
    return ReplayPlan(**{**fields, **changes})


def make_shard(
    capacity: int = 8,
    sampling: str = "prioritized",
    limiter: RatioLimiter = FREE,
    run_id: str = "run",
    shard: int = 0,
) -> ReplayShard:
    plan = replay_plan(capacity=capacity, sampling=sampling)
    return ReplayShard(plan, SPEC, limiter, run_id=run_id, shard=shard)


def make_chunk(
    seq: int,
    rows: int = 2,
    *,
    slot: int = 0,
    incarnation: int = 0,
    run_id: str = "run",
    first: int = 0,
    priorities: list[float] | None = None,
    episodes: int = 0,
) -> TransitionChunk:
    numbers = np.arange(first, first + rows)
    observation = np.stack([numbers, numbers], axis=1).astype("<f4")
    columns = {
        "observation": observation,
        "action": (numbers % 2).astype("<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.full(rows, 0.99, "<f4"),
        "next_observation": observation + 1,
    }
    errors = None if priorities is None else np.array(priorities, dtype=np.float64)
    ended = tuple(EpisodeSummary(slot, 0, 9.0, 9, 0.1, True) for _ in range(episodes))
    chunk_id = ChunkId(run_id, slot, incarnation, seq)
    return TransitionChunk(chunk_id, columns, errors, 0, rows + 1, ended)


def test_insert_in_order_is_accepted_with_growing_hwm():
    shard = make_shard()

    acks = [shard.insert(make_chunk(seq, 3), 1.0) for seq in range(3)]

    assert acks == [("accepted", seq, UNLIMITED_CREDITS) for seq in range(3)]
    stats = shard.stats()
    assert (stats.inserted, stats.size, stats.evicted, stats.gap_chunks) == (9, 8, 1, 0)
    shard.check_valid()


def test_insert_twice_is_stored_once():
    shard = make_shard()
    shard.insert(make_chunk(0), 1.0)

    ack = shard.insert(make_chunk(0), 2.0)

    assert (ack.status, ack.hwm) == ("duplicate", 0)
    assert (shard.stats().inserted, shard.stats().duplicate_chunks) == (2, 1)
    assert shard.slots.env_steps == 3


def test_insert_out_of_order_is_accepted_once_without_gap():
    shard = make_shard(64)

    acks = [shard.insert(make_chunk(seq), 1.0) for seq in (1, 0, 4, 1, 4, 3, 2)]

    assert [(ack.status, ack.hwm) for ack in acks] == [
        ("accepted", -1),
        ("accepted", 1),
        ("accepted", 1),
        ("duplicate", 1),
        ("duplicate", 1),
        ("accepted", 1),
        ("accepted", 4),
    ]
    assert (shard.stats().inserted, shard.stats().gap_chunks) == (10, 0)
    shard.check_valid()


def test_insert_beyond_window_counts_given_up_numbers_as_gap():
    shard = make_shard(64)
    shard.insert(make_chunk(0), 1.0)
    shard.insert(make_chunk(3), 1.0)

    ack = shard.insert(make_chunk(12), 1.0)  # floor 4: numbers 1 and 2 are given up

    assert (ack.status, ack.hwm) == ("accepted", 3)
    assert shard.stats().gap_chunks == 2
    assert shard.insert(make_chunk(2), 1.0).status == "duplicate"
    assert shard.insert(make_chunk(4), 1.0) == ("accepted", 4, UNLIMITED_CREDITS)
    assert shard.stats().inserted == 8
    shard.check_valid()


def test_insert_exactly_at_window_gives_nothing_up():
    shard = make_shard(64)

    assert shard.insert(make_chunk(8), 1.0).hwm == -1
    assert shard.stats().gap_chunks == 0
    assert shard.insert(make_chunk(9), 1.0).hwm == 0
    assert shard.stats().gap_chunks == 1


def test_insert_zombie_is_refused_and_new_incarnation_starts_at_zero():
    shard = make_shard()
    shard.insert(make_chunk(0, incarnation=1), 1.0)
    shard.insert(make_chunk(2, incarnation=1), 1.0)

    fresh = shard.insert(make_chunk(0, incarnation=2), 1.0)
    zombie = shard.insert(make_chunk(3, 5, incarnation=1), 1.0)

    assert (fresh.status, fresh.hwm) == ("accepted", 0)
    assert (zombie.status, zombie.hwm) == ("stale_incarnation", -1)
    stats = shard.stats()
    assert (stats.rejected_transitions, stats.gap_chunks, stats.inserted) == (5, 1, 6)


def test_fence_refuses_older_incarnations_before_the_new_one_writes():
    shard = make_shard()
    shard.insert(make_chunk(0), 1.0)

    shard.fence(0, 3)
    shard.fence(0, 2)

    assert shard.insert(make_chunk(1), 1.0).status == "stale_incarnation"
    assert shard.insert(make_chunk(0, incarnation=2), 1.0).status == "stale_incarnation"
    assert shard.insert(make_chunk(0, incarnation=3), 1.0).status == "accepted"
    assert shard.insert(make_chunk(1, slot=7), 1.0).status == "accepted"


def test_insert_of_another_run_is_refused():
    shard = make_shard()

    ack = shard.insert(make_chunk(0, run_id="other"), 1.0)

    assert (ack.status, ack.hwm) == ("foreign_run", -1)
    assert (shard.size, shard.stats().rejected_transitions) == (0, 2)


def test_insert_malformed_changes_nothing():
    shard = make_shard()
    bad_columns = make_chunk(0)
    bad_columns.columns["action"] = bad_columns.columns["action"][:1]

    with pytest.raises(InvariantError, match="action"):
        shard.insert(bad_columns, 1.0)
    with pytest.raises(ValueError, match="finite"):
        shard.insert(make_chunk(0, priorities=[1.0, np.nan]), 1.0)
    with pytest.raises(ValueError, match="one per transition"):
        shard.insert(make_chunk(0, priorities=[1.0]), 1.0)

    assert shard.insert(make_chunk(0), 1.0).status == "accepted"
    assert shard.size == 2
    shard.check_valid()


def test_insert_chunk_larger_than_capacity_keeps_last_rows_and_priorities():
    shard = make_shard(4)

    shard.insert(make_chunk(0, 6, priorities=[50, 50, 1, 2, 3, 4]), 1.0)

    stats = shard.stats()
    assert (stats.size, stats.inserted, stats.evicted) == (4, 6, 2)
    assert stats.mass == pytest.approx(10.0, rel=1e-5)
    sample = shard.sample(200, 1.0)
    assert set(sample.columns["n_step_return"].tolist()) == {2.0, 3.0, 4.0, 5.0}
    shard.check_valid()


def test_insert_empty_chunk_counts_its_episodes():
    shard = make_shard()

    assert shard.insert(make_chunk(0, 0, priorities=[], episodes=2), 1.0).status == "accepted"

    assert (shard.size, shard.slots.episodes, shard.slots.env_steps) == (0, 2, 1)
    shard.check_valid()


def test_counters_are_kept_per_slot_over_incarnations():
    shard = make_shard()
    shard.insert(make_chunk(0, 3, slot=0, episodes=1), 1.0)
    shard.insert(make_chunk(0, 2, slot=4, episodes=2), 1.0)
    shard.insert(make_chunk(0, 1, slot=0, incarnation=1), 1.0)

    assert [tuple(slot)[:4] for slot in shard.slots.stats()] == [(0, 1, 6, 4), (4, 0, 3, 2)]
    assert (shard.stats().env_steps, shard.stats().episodes) == (9, 3)


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_sample_rows_belong_to_their_keys(sampling):
    shard = make_shard(4, sampling, shard=1)
    shard.insert(make_chunk(0, 3, first=0), 10.0)
    shard.insert(make_chunk(1, 3, first=3), 20.0)

    sample = shard.sample(100, 25.0)

    assert sample.shard == 1
    assert np.array_equal(sample.columns["n_step_return"], sample.item_keys.astype("f4"))
    assert set(sample.item_keys.tolist()) == {2, 3, 4, 5}
    assert sample.columns["observation"].shape == (100, 2)
    assert sample.probabilities == pytest.approx(np.full(100, 0.25))
    assert sample.mean_age_s == pytest.approx(np.where(sample.item_keys == 2, 15.0, 5.0).mean())
    assert sample.stats == shard.stats()
    assert sample.stats.sampled == 100


def test_sample_empty_raises():
    with pytest.raises(ReplayNotReadyError, match="shard 0 is empty"):
        make_shard().sample(1, 0.0)


def test_update_priorities_applies_current_and_drops_late_keys():
    shard = make_shard(4)
    shard.insert(make_chunk(0, 4, priorities=[1, 1, 1, 1]), 1.0)
    shard.insert(make_chunk(1, 2, priorities=[1, 1]), 1.0)  # keys 0 and 1 are gone

    update = PriorityUpdate(np.array([0, 2, 1, 2, 4]), np.array([9.0, 5.0, 9.0, 3.0, 2.0]))
    applied = shard.update_priorities(update)

    assert applied == 3
    assert shard.stats().dropped_priority_updates == 2
    assert shard.stats().mass == pytest.approx(3.0 + 1.0 + 2.0 + 1.0, rel=1e-5)
    shard.check_valid()


def test_update_priorities_uniform_counts_but_changes_nothing():
    shard = make_shard(4, "uniform")
    shard.insert(make_chunk(0, 4), 1.0)

    assert shard.update_priorities(PriorityUpdate(np.array([0, 9]), np.array([5.0, 1.0]))) == 1
    assert shard.stats().mass == 4.0


@pytest.mark.parametrize("sampling", ["uniform", "prioritized", "rank"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_update_priorities_bad_value_raises_and_changes_nothing(sampling, bad):
    shard = make_shard(4, sampling)
    shard.insert(make_chunk(0, 2), 1.0)
    before = shard.stats()

    with pytest.raises(ValueError, match="finite"):
        shard.update_priorities(PriorityUpdate(np.array([0, 77]), np.array([1.0, bad])))
    with pytest.raises(ValueError, match="TD errors"):
        shard.update_priorities(PriorityUpdate(np.array([0]), np.array([1.0, 1.0])))

    assert shard.stats() == before


def test_limiter_counts_decide_and_explain():
    shard = make_shard(64, limiter=RatioLimiter(2.0, 4, 6))
    assert not shard.can_sample(1)

    credits = [shard.insert(make_chunk(seq), 1.0).credits for seq in range(3)]

    assert credits == [5, 3, 1]
    assert shard.can_insert(1)
    assert not shard.can_insert(2)
    assert shard.can_sample(10)
    assert not shard.can_sample(11)
    shard.sample(10, 1.0)
    assert not shard.can_sample(1)
    assert "shard 0: replay holds 6 of 4 needed; inserted 6, sampled 10" in shard.explain_limiter()


def test_constructor_min_size_over_capacity_raises():
    with pytest.raises(ConfigError, match="at most its capacity of 8"):
        make_shard(8, limiter=RatioLimiter(None, 9, 0))


def frozen(shard: ReplayShard, contents: bool = True) -> bytes:
    return b"".join(shard.freeze(contents).pieces())


def restore(shard: ReplayShard, data: bytes) -> None:
    restoring = shard.restoring()
    restoring.take(data)
    restoring.end()


def busy_shard(sampling: str = "prioritized") -> ReplayShard:
    shard, rng = make_shard(16, sampling, RatioLimiter(2.0, 4, 60)), np.random.default_rng(0)
    for seq in (0, 1, 3, 4, 6):
        shard.insert(make_chunk(seq, 5, slot=seq % 2, first=seq, episodes=1), float(seq))
        sample = shard.sample(6, 9.0)
        shard.update_priorities(PriorityUpdate(sample.item_keys, rng.random(6)))
    shard.insert(make_chunk(0, 5, slot=0), 9.0)
    shard.insert(make_chunk(0, 5, run_id="no"), 9.0)
    return shard


@pytest.mark.parametrize("sampling", ["uniform", "prioritized", "rank"])
def test_capture_round_trip_continues_exactly(sampling):
    shard, other = busy_shard(sampling), make_shard(16, sampling, RatioLimiter(2.0, 4, 60))
    other.insert(make_chunk(5, 3, slot=9), 1.0)

    restore(other, frozen(shard))

    other.check_valid()
    assert other.stats() == shard.stats()
    assert other.slots.capture() == shard.slots.capture()
    for one in (shard, other):
        one.insert(make_chunk(2, 4, slot=1), 11.0)
    ours, theirs = shard.sample(64, 12.0), other.sample(64, 12.0)
    assert np.array_equal(ours.item_keys, theirs.item_keys)
    assert np.array_equal(ours.probabilities, theirs.probabilities)
    assert ours.mean_age_s == theirs.mean_age_s
    for name, column in ours.columns.items():
        assert np.array_equal(column, theirs.columns[name])
    assert other.insert(make_chunk(6, slot=0), 1.0) == shard.insert(make_chunk(6, slot=0), 1.0)
    assert other.stats() == shard.stats()


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
@pytest.mark.parametrize("rows_before", [0, 1, 5])
def test_frozen_shard_does_not_change_with_the_shard(monkeypatch, sampling, rows_before):
    monkeypatch.setattr(shard_capture, "PIECE_BYTES", 1)  # a row at a time
    wanted, shard = decode_capture(frozen(busy_shard(sampling))), busy_shard(sampling)
    cut = shard.freeze()
    rows = [part for _ in range(rows_before) for part in cut.take()]

    shard.insert(make_chunk(2, 9, slot=1), 11.0)
    sample = shard.sample(5, 11.0)
    shard.update_priorities(PriorityUpdate(sample.item_keys, np.full(5, 9.0)))
    while more := cut.take():
        rows += more

    got = decode_capture(b"".join([cut.head(), *map(encode_rows, rows)]))
    assert got.meta == wanted.meta
    assert list(got.arrays) == list(wanted.arrays)
    for name, array in wanted.arrays.items():
        assert np.array_equal(got.arrays[name], array)
    assert cut.take() == []


def test_can_insert_waits_for_the_reader_of_a_cut_only_while_its_buffer_is_full(monkeypatch):
    shard = make_shard(8)
    monkeypatch.setattr(frozen_rows, "BUFFER_BYTES", 3 * shard._storage.row_bytes)
    monkeypatch.setattr(shard_capture, "PIECE_BYTES", 3 * shard._storage.row_bytes)
    shard.insert(make_chunk(0, 8), 0.0)
    assert shard.can_insert(8)
    cut = shard.freeze()

    assert shard.can_insert(8)  # larger than the buffer, which is empty
    shard.insert(make_chunk(1, 3), 0.0)  # overwrites three rows nobody has read
    assert not shard.can_insert(1)
    cut.take()
    assert shard.can_insert(1)
    assert cut.take()  # two more rows straight from the ring: nothing to keep for those
    cut.release()
    assert shard.can_insert(8)


def test_freeze_again_or_release_gives_the_buffer_up(monkeypatch):
    shard = make_shard(8)
    monkeypatch.setattr(frozen_rows, "BUFFER_BYTES", 1)
    shard.insert(make_chunk(0, 8), 0.0)
    shard.freeze()
    shard.insert(make_chunk(1, 3), 0.0)
    assert not shard.can_insert(1)

    shard.freeze()

    assert shard.can_insert(1)
    assert len(decode_capture(frozen(shard)).arrays["inserted_at_s"]) == 8


def test_restore_without_contents_keeps_ledger_and_fills_again_without_burst():
    shard, other = busy_shard(), make_shard(16, limiter=RatioLimiter(2.0, 4, 60))
    old_keys = shard.sample(4, 1.0).item_keys

    restore(other, frozen(shard, contents=False))

    other.check_valid()
    stats = other.stats()
    assert (stats.size, stats.inserted, stats.mass) == (0, shard.stats().inserted, 0.0)
    assert stats.evicted == stats.inserted
    assert other.insert(make_chunk(0, slot=0), 1.0).status == "duplicate"
    assert other.can_insert(30)
    assert not other.can_sample(1)
    other.insert(make_chunk(2, 4, slot=0), 1.0)
    assert other.can_sample(60)
    assert not other.can_sample(61)  # as a new shard would: 4 free inserts, then the window
    assert other.update_priorities(PriorityUpdate(old_keys, np.ones(4))) == 0
    other.check_valid()


def test_restore_into_another_run_forgets_its_slots():
    other = make_shard(16, limiter=RatioLimiter(2.0, 4, 60), run_id="next")

    restore(other, frozen(busy_shard()))

    assert other.insert(make_chunk(0, run_id="next"), 1.0).status == "accepted"


def test_restore_misfit_raises_with_differences_and_changes_nothing():
    shard = make_shard(8, shard=1)
    shard.insert(make_chunk(0), 1.0)
    before = frozen(shard)

    with pytest.raises(CheckpointError, match="shard is 0, here 1; capacity is 16, here 8"):
        restore(shard, frozen(busy_shard()))
    with pytest.raises(CheckpointError, match=r"replay\.sampling"):
        restore(make_shard(16), frozen(busy_shard("uniform")))

    assert frozen(shard) == before


def damaged(change) -> bytes:
    """A shard's stream with its state or arrays changed, and right checksums."""
    capture = decode_capture(frozen(busy_shard()))
    change(capture)
    return b"".join(encode_capture(capture))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.meta.pop("ledger"),
        lambda c: c.meta.update(ledger=7),
        lambda c: c.meta.update(counters={"inserted": 1, "more": 2}),
        lambda c: c.meta.update(storage=[]),
        lambda c: c.meta["storage"].update(size="many"),
        lambda c: c.meta["storage"].update(size=-1),
        lambda c: c.meta["sampler"].pop("rng"),
        lambda c: c.meta["sampler"].update(rng={"state": 1}),
        lambda c: c.arrays.pop("inserted_at_s"),
        lambda c: c.arrays.update(more=np.zeros(3)),
        lambda c: c.arrays.update({"sampler.weights": np.zeros(2**20)}),
        lambda c: c.arrays.update({"column.action": np.zeros(16, np.int64)}),
    ],
)
def test_restore_damaged_state_under_right_checksums_is_a_checkpoint_error(change):
    with pytest.raises(CheckpointError):
        restore(make_shard(16, limiter=RatioLimiter(2.0, 4, 60)), damaged(change))


def test_restore_stream_that_ends_early_leaves_an_empty_shard():
    shard = make_shard(16, limiter=RatioLimiter(2.0, 4, 60))
    shard.insert(make_chunk(5, 3, slot=9), 1.0)
    head, *rows = messages(frozen(busy_shard()))
    restoring = shard.restoring()
    for message in (head, *rows[:-1]):
        restoring.take(message)

    with pytest.raises(CheckpointError, match="rows missing"):
        restoring.end()

    assert shard.size == 0
    with pytest.raises(CheckpointError, match="empty"):
        shard.restoring().end()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["uniform", "prioritized", "rank"]),
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 14), st.integers(0, 9)),
        max_size=40,
    ),
)
def test_random_deliveries_are_stored_exactly_once(sampling, deliveries):
    shard, accepted = make_shard(16, sampling), {}
    newest = {0: -1, 1: -1}
    for slot, incarnation, seq, rows in deliveries:
        chunk = make_chunk(seq, rows, slot=slot, incarnation=incarnation)
        status = shard.insert(chunk, 0.0).status

        shard.check_valid()
        is_stale = incarnation < newest[slot]
        newest[slot] = max(newest[slot], incarnation)
        assert (status == "stale_incarnation") == is_stale
        if status == "accepted":
            assert chunk.chunk_id not in accepted
            accepted[chunk.chunk_id] = rows
        if shard.size:
            sample = shard.sample(5, 0.0)
            shard.update_priorities(PriorityUpdate(sample.item_keys, np.ones(5)))
    stats = shard.stats()
    assert stats.inserted == sum(accepted.values()) == stats.size + stats.evicted
    for slot, incarnation in newest.items():
        seqs = {c.seq for c in accepted if (c.actor_slot, c.incarnation) == (slot, incarnation)}
        lost = [c for c in range(max(seqs, default=0) - 8) if c not in seqs]
        assert stats.gap_chunks >= len(lost)


def test_sample_nothing_is_empty_and_counts_nothing():
    shard = make_shard()
    shard.insert(make_chunk(0), 1.0)

    sample = shard.sample(0, 5.0)

    assert (len(sample.item_keys), sample.mean_age_s, sample.stats.sampled) == (0, 0.0, 0)
