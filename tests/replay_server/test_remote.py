"""The shard's shell without Ray around it: who waits for whom, and a capture beside inserts."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qfleet.common.capture_stream import decode_capture, pieces_of
from qfleet.common.errors import WireFormatError
from qfleet.common.inline_pieces import join, split
from qfleet.common.messages import decode_shard_sample, encode_chunk, encode_priority_update
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import ChunkId, EnvironmentSpec, PriorityUpdate, TransitionChunk
from qfleet.replay_server import remote
from qfleet.replay_server.remote import ReplayServerShell
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (2,), "<f4", 2, 475.0, 500)
TIMEOUT_S = 30.0


def make_shell(**replay) -> ReplayServerShell:
    """Of 64 rows; the first 4 inserts are free, then one sample per insert, give or take 8."""
    settings = {
        "capacity": 64,
        "min_size_to_sample": 4,
        "samples_per_insert": 1.0,
        "limiter_tolerance_samples": 8,
    }
    config = Config.model_validate(
        {
            "replay": settings | replay,
            "actors": {"count": 1, "chunk_transitions": 4, "max_chunk_transitions": 4},
            "learner": {"batch_size": 4, "updates_per_call": 1, "max_blocks_per_request": 1},
        }
    )
    plan = run_plans(resolve_config(config, None, cpus=2, gpus=0)).replay
    return ReplayServerShell(plan_to_json(plan), SPEC.to_json(), "run", 0)


def make_chunk(seq: int, rows: int = 4) -> bytes:
    numbers = np.arange(seq * rows, (seq + 1) * rows)
    observation = np.stack([numbers, numbers], axis=1).astype("<f4")
    columns = {
        "observation": observation,
        "action": (numbers % 2).astype("<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.full(rows, 0.99, "<f4"),
        "next_observation": observation + 1,
    }
    return encode_chunk(TransitionChunk(ChunkId("run", 0, 0, seq), columns, None, 0, rows))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_insert_held_back_goes_on_when_samples_were_drawn(pool, monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", TIMEOUT_S)
    shell = make_shell()
    for seq in range(3):  # 12 inserted, 8 above the minimum: the tolerance is used up
        assert shell.insert(make_chunk(seq))[0] == "accepted"

    held = pool.submit(shell.insert, make_chunk(3))
    assert shell.sample(4) is not None  # a held insert does not delay the other side
    assert held.result(TIMEOUT_S)[:2] == ["accepted", 3]

    report = shell.report()
    assert report["stats"][1:3] == [16, 4]
    assert report["times"]["sample_held"] == 0.0


def test_sample_held_back_goes_on_when_enough_was_inserted(pool, monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", TIMEOUT_S)
    shell = make_shell()

    held = pool.submit(shell.sample, 4)
    assert shell.insert(make_chunk(0))[0] == "accepted"

    assert len(decode_shard_sample(held.result(TIMEOUT_S)).item_keys) == 4


def test_held_back_calls_are_answered_blocked_and_the_queue_waits_once(monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", 0.05)
    monkeypatch.setattr(remote, "QUEUED_HOLD_BACK_S", 0.001)
    shell = make_shell()
    assert shell.sample(4) is None
    for seq in range(3):
        shell.insert(make_chunk(seq))

    answers = [shell.insert(make_chunk(3)) for _ in range(3)]

    assert answers == [["blocked", -1, 0]] * 3
    assert shell.stats()[1] == 12
    report = shell.report()
    assert report["times"]["insert_held"] >= 0.05
    assert report["times"]["sample_held"] >= 0.05


def test_patience_is_whole_once_and_small_for_those_behind():
    side = remote._Side()

    assert side.patience_s(10.0) == remote.HOLD_BACK_S
    assert side.patience_s(11.5) == pytest.approx(remote.HOLD_BACK_S - 1.5)
    assert side.patience_s(10.0 + remote.HOLD_BACK_S) == remote.QUEUED_HOLD_BACK_S
    side.held_since_s = None  # the limiter let a call through
    assert side.patience_s(99.0) == remote.HOLD_BACK_S


def test_open_gate_lets_everybody_go(pool, monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", TIMEOUT_S)
    shell = make_shell()
    sampling = pool.submit(shell.sample, 4)

    shell.open_gate()

    assert sampling.result(TIMEOUT_S) is None  # nothing to draw, but nobody waits
    for seq in range(5):
        assert shell.insert(make_chunk(seq))[0] == "accepted"


def test_calls_that_do_not_ask_the_limiter_never_wait(monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", TIMEOUT_S)
    shell = make_shell()
    for seq in range(5):
        assert shell.insert(make_chunk(seq), False)[0] == "accepted"
    for _ in range(6):
        assert shell.sample(8, False) is not None


def test_malformed_chunk_is_counted_and_changes_nothing():
    shell = make_shell()
    data = bytearray(make_chunk(0))
    data[-1] ^= 1
    for _ in range(2):
        with pytest.raises(WireFormatError, match="checksum"):
            shell.insert(bytes(data))
    report = shell.report()
    assert list(report["malformed_chunks"].values()) == [2]
    assert report["stats"][1] == 0


def pulled(shell: ReplayServerShell) -> bytes:
    return b"".join([shell.freeze(True), *rest(shell)])


def rest(shell: ReplayServerShell) -> Iterator[bytes]:
    while (parts := shell.next_piece(3))[0] is not None:
        yield join(parts)


def test_frozen_state_is_that_of_the_freeze_whatever_is_inserted_meanwhile(pool, monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.shard_capture.PIECE_BYTES", 100)
    shell, twin = (make_shell(samples_per_insert=None, capacity=16) for _ in range(2))
    monkeypatch.setattr(remote.time, "time", lambda: 5.0)
    for seq in range(4):
        for one in (shell, twin):
            one.insert(make_chunk(seq))
    stop = threading.Event()

    def keep_inserting() -> int:
        seq = 4
        while not stop.is_set():
            shell.insert(make_chunk(seq))
            seq += 1
        return seq

    wanted = decode_capture(pulled(twin))
    pieces = [shell.freeze(True)]  # nobody inserts before it: this is the moment that counts
    inserting = pool.submit(keep_inserting)
    try:
        pieces += rest(shell)
    finally:
        stop.set()
    assert inserting.result(TIMEOUT_S) > 4

    got = decode_capture(b"".join(pieces))
    assert got.meta == wanted.meta
    assert list(got.arrays) == list(wanted.arrays)
    for name, array in wanted.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
    assert shell.next_piece(2) == [None, None]


def test_freeze_beside_inserts_restores_in_pieces_to_a_valid_shard(pool, monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.shard_capture.PIECE_BYTES", 100)
    shell = make_shell(samples_per_insert=None, capacity=64)
    for seq in range(20):
        shell.insert(make_chunk(seq))

    pulling = pool.submit(pulled, shell)
    for seq in range(20, 40):
        shell.insert(make_chunk(seq))
    data = pulling.result(TIMEOUT_S)

    other = make_shell(samples_per_insert=None, capacity=64)
    for piece in pieces_of(data, 700):
        other.restore_piece(*split(bytes(piece), 3))
    other.end_restore()
    other._core.check_valid()
    inserted = other.stats()[1]
    assert 80 <= inserted <= 160
    held = np.sort(decode_capture(pulled(other)).arrays["column.n_step_return"])
    np.testing.assert_array_equal(held, np.arange(inserted - 64, inserted))


def test_insert_that_overruns_a_cut_waits_for_the_reader_or_its_end(pool, monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.frozen_rows.BUFFER_BYTES", 1)
    monkeypatch.setattr(remote, "HOLD_BACK_S", 0.01)
    shell = make_shell(samples_per_insert=None, capacity=8)
    for seq in range(2):
        shell.insert(make_chunk(seq))
    shell.freeze(True)
    assert shell.insert(make_chunk(2))[0] == "accepted"  # into the empty buffer
    assert shell.insert(make_chunk(3))[0] == "blocked"

    monkeypatch.setattr(remote, "HOLD_BACK_S", TIMEOUT_S)
    waiting = pool.submit(shell.insert, make_chunk(3))
    shell.next_piece()
    assert waiting.result(TIMEOUT_S)[0] == "accepted"
    waiting = pool.submit(shell.insert, make_chunk(4))
    shell.drop_frozen()
    assert waiting.result(TIMEOUT_S)[0] == "accepted"
    assert shell.next_piece(2) == [None, None]


def test_cut_of_a_large_shard_needs_no_second_copy_of_it():
    shell = make_shell(samples_per_insert=None, capacity=400_000)
    for seq in range(40):
        shell.insert(make_chunk(seq, rows=10_000))
    row_bytes = shell._core._storage.row_bytes
    tracemalloc.start()

    shell.freeze(True)
    n_bytes = 0
    for piece in rest(shell):
        n_bytes += len(piece)

    left_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_bytes > 400_000 * row_bytes
    assert peak_bytes < 6 * 2**20
    assert left_bytes < 2**18


def test_sample_in_pieces_is_the_sample_whole():
    whole, in_pieces = make_shell(), make_shell()
    for shell in (whole, in_pieces):
        shell.insert(make_chunk(0))

    one, pieces = whole.sample(4), in_pieces.sample(4, True, 3)

    assert len(pieces) == 3
    expected, actual = decode_shard_sample(one), decode_shard_sample(join(pieces))
    np.testing.assert_array_equal(actual.item_keys, expected.item_keys)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(actual.columns[name], column)


def test_sample_held_back_is_none_in_every_piece(monkeypatch):
    monkeypatch.setattr(remote, "HOLD_BACK_S", 0.01)

    assert make_shell().sample(4, True, 3) == [None, None, None]


def test_update_priorities_of_several_messages_applies_them_in_order():
    shell = make_shell(sampling="prioritized", priority_exponent=1.0)
    shell.insert(make_chunk(0))
    keys = np.arange(4)
    first = PriorityUpdate(keys, np.full(4, 9.0))
    second = PriorityUpdate(keys[:1], np.array([1.0]))

    applied = shell.update_priorities(*map(encode_priority_update, (first, second)))

    assert applied == 5
    sample = decode_shard_sample(shell.sample(8, False))
    by_key = dict(zip(sample.item_keys.tolist(), sample.probabilities.tolist(), strict=True))
    total = 1.0 + 3 * 9.0
    for key, probability in by_key.items():
        assert probability == pytest.approx((1.0 if key == 0 else 9.0) / total, rel=1e-4)


def test_report_says_what_the_limiter_lets_through():
    shell = make_shell()
    shell.insert(make_chunk(0))
    shell.insert(make_chunk(1))

    assert shell.report()["limiter"] == (
        "shard 0: replay holds 8 of 4 needed; inserted 8, sampled 0, "
        "error 4 samples in ±8 at 1 samples per insert"
    )
