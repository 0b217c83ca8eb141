"""The shard's shell without Ray around it: who waits for whom, and a capture beside inserts."""

from __future__ import annotations

import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qfleet.common import wire
from qfleet.common.capture_stream import decode_capture, pieces_of
from qfleet.common.errors import WireFormatError
from qfleet.common.inline_pieces import join, split
from qfleet.common.messages import encode_chunk, encode_priority_update
from qfleet.common.plan_json import plan_to_json
from qfleet.common.sample_message import decode_shard_sample
from qfleet.common.types import (
    ChunkId,
    EnvironmentSpec,
    EpisodeSummary,
    PriorityUpdate,
    TransitionChunk,
)
from qfleet.replay_server import announced_params, remote
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


def make_chunk(
    seq: int, rows: int = 4, *, slot: int = 0, incarnation: int = 0, episodes=0, versions=(0, 0)
) -> bytes:
    numbers = np.arange(seq * rows, (seq + 1) * rows)
    observation = np.stack([numbers, numbers], axis=1).astype("<f4")
    columns = {
        "observation": observation,
        "action": (numbers % 2).astype("<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.full(rows, 0.99, "<f4"),
        "next_observation": observation + 1,
    }
    ended = tuple(EpisodeSummary(slot, 0, 1.0, rows, 0.1, True) for _ in range(episodes))
    name = ChunkId("run", slot, incarnation, seq)
    params, target = versions
    chunk = TransitionChunk(name, columns, None, params, rows, ended, target_version=target)
    return encode_chunk(chunk)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def accepted(answer) -> bool:
    return answer[0][0] == "accepted"


def until(condition) -> None:
    """Wait for another thread."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def fill(shell: ReplayServerShell) -> None:
    """12 inserted, 8 above the minimum: the tolerance is used up."""
    for seq in range(3):
        assert accepted(shell.insert(make_chunk(seq)))


def test_insert_held_back_goes_on_when_samples_were_drawn(pool):
    shell = make_shell()
    fill(shell)

    held = pool.submit(shell.insert, make_chunk(3))
    assert shell.sample(4) is not None  # a held insert does not delay the other side
    assert held.result(TIMEOUT_S)[0][:2] == ["accepted", 3]

    report = shell.report()
    assert report["stats"][1:3] == [16, 4]
    assert report["times"]["sample_held"] == 0.0


def test_chunk_held_back_is_acknowledged_with_what_was_published_before_the_draws(
    pool, monkeypatch
):
    monkeypatch.setattr(announced_params, "FRESH_S", 0.0)
    monkeypatch.setattr(announced_params, "COMING_S", TIMEOUT_S)
    shell = make_shell()
    shell.announce(1, 0, b"one", None)
    fill(shell)
    held = pool.submit(shell.insert, make_chunk(3), (1, 0))
    until(lambda: len(shell._inserting) == 1)

    shell.sample(4, 1, 2)  # overtakes the announcement of version 2
    until(lambda: shell.stats()[1] == 16)
    time.sleep(0.05)
    assert not held.done()  # stored already, and not yet acknowledged
    assert accepted(shell.insert(make_chunk(0, slot=1), wait=False))  # others do not wait for that
    shell.announce(2, 0, b"two", None)

    assert held.result(TIMEOUT_S)[1] == [2, 0, b"two", None]


def test_what_the_limiter_did_not_hold_back_waits_for_no_announcement(pool, monkeypatch):
    monkeypatch.setattr(announced_params, "FRESH_S", 0.0)
    monkeypatch.setattr(announced_params, "COMING_S", 100 * TIMEOUT_S)
    shell = make_shell()
    shell.announce(1, 0, b"one", None)
    fill(shell)
    shell.sample(4, 1, 2)  # version 2 is never announced

    at_once = pool.submit(shell.insert, make_chunk(3), (1, 0))
    again = pool.submit(shell.insert, make_chunk(3), (1, 0))  # is not stored, so never held back
    assert {at_once.result(TIMEOUT_S)[0][0], again.result(TIMEOUT_S)[0][0]} == {
        "accepted",
        "duplicate",
    }
    held = pool.submit(shell.insert, make_chunk(4), (1, 0))
    until(lambda: len(shell._inserting) == 1)
    shell.open_gate()  # the run ends: nothing more is announced
    assert accepted(held.result(TIMEOUT_S))


def test_sample_held_back_goes_on_when_enough_was_inserted(pool, monkeypatch):
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", TIMEOUT_S)
    shell = make_shell()

    held = pool.submit(shell.sample, 4)
    assert accepted(shell.insert(make_chunk(0)))

    assert len(decode_shard_sample(held.result(TIMEOUT_S)).item_keys) == 4


def test_held_back_chunk_stays_and_nothing_else_waits_for_it(pool, monkeypatch):
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", 0.0)
    shell = make_shell(sampling="prioritized")
    fill(shell)
    held = pool.submit(shell.insert, make_chunk(3))
    until(lambda: len(shell._inserting) == 1)

    # What is there already, or comes from a replaced actor, is answered at once.
    assert shell.insert(make_chunk(1))[0][0] == "duplicate"
    shell.fence(7, 1)
    assert shell.insert(make_chunk(0, slot=7))[0][0] == "stale_incarnation"
    keys = np.arange(4)
    assert shell.update_priorities(encode_priority_update(PriorityUpdate(keys, np.ones(4)))) == 4
    shell.announce(1, 1, b"parameters", None)
    assert shell.await_params(0.0)[:2] == [1, 1]
    assert shell.holds("run", 0, 0, 3)
    assert not shell.holds("run", 0, 0, 2)
    assert shell.report()["times"]["insert_held"] > 0.0  # while it still waits
    assert not held.done()

    shell.sample(4)
    assert accepted(held.result(TIMEOUT_S))
    assert not shell.holds("run", 0, 0, 3)


def test_chunks_behind_more_than_can_wait_are_not_asked_for_again(pool, monkeypatch):
    monkeypatch.setitem(remote.CONCURRENCY_GROUPS, "insert", 2)
    shell = make_shell()
    fill(shell)
    held = [pool.submit(shell.insert, make_chunk(3))]
    until(lambda: len(shell._inserting) == 1)
    assert not shell.holds("run", 1, 0, 0)  # there is a thread for it: it is lost

    held.append(pool.submit(shell.insert, make_chunk(0, slot=2)))
    until(lambda: len(shell._inserting) == 2)

    assert shell.holds("run", 1, 0, 0)  # it may wait behind these two
    shell.open_gate()
    assert all(accepted(one.result(TIMEOUT_S)) for one in held)


def test_chunks_held_back_go_on_in_the_order_in_which_they_came(pool):
    shell = make_shell()
    fill(shell)
    waiting = []
    for slot in (5, 3, 8):
        waiting.append(pool.submit(shell.insert, make_chunk(0, slot=slot)))
        until(lambda: len(shell._inserting) == len(waiting))

    for done in range(1, 4):
        assert shell.sample(4) is not None
        assert accepted(waiting[done - 1].result(TIMEOUT_S))
        assert [future.done() for future in waiting] == [i < done for i in range(3)]


def test_held_back_chunk_of_an_actor_that_is_replaced_is_refused_at_once(pool):
    shell = make_shell()
    fill(shell)
    held = pool.submit(shell.insert, make_chunk(3))
    until(lambda: len(shell._inserting) == 1)

    shell.fence(0, 1)

    assert held.result(TIMEOUT_S)[0][0] == "stale_incarnation"
    assert shell.stats()[1] == 12


def test_sample_held_back_for_long_is_answered_none(monkeypatch):
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", 0.05)
    shell = make_shell()

    assert shell.sample(4) is None

    assert shell.report()["times"]["sample_held"] >= 0.05


def test_acknowledgement_brings_what_the_actor_does_not_hold():
    shell = make_shell(samples_per_insert=None)
    assert shell.insert(make_chunk(0))[1] == [0, 0, None, None]
    shell.announce(7, 5, b"latest", b"target")

    assert shell.insert(make_chunk(1), (6, 5))[1] == [7, 5, b"latest", None]
    assert shell.insert(make_chunk(2), (6, 4))[1] == [7, 5, b"latest", b"target"]
    assert shell.insert(make_chunk(3), (7, 5))[1] == [7, 5, None, None]

    shell.announce(6, 5, b"older", b"target")  # a call that was made twice and came late
    assert shell.insert(make_chunk(4), (6, 5))[1] == [7, 5, b"latest", None]


def test_acknowledgement_of_a_chunk_held_back_brings_the_newest_parameters(pool):
    shell = make_shell()
    fill(shell)
    held = pool.submit(shell.insert, make_chunk(3), (1, 1))
    until(lambda: len(shell._inserting) == 1)
    shell.announce(9, 9, b"latest", None)

    shell.sample(4)

    assert held.result(TIMEOUT_S)[1] == [9, 9, b"latest", None]


def test_first_parameters_are_waited_for(pool):
    shell = make_shell()
    assert shell.await_params(0.0)[0] == 0

    waiting = pool.submit(shell.await_params, TIMEOUT_S)
    shell.announce(3, 2, b"latest", b"target")

    assert waiting.result(TIMEOUT_S) == [3, 2, b"latest", b"target"]


def test_episodes_are_told_until_they_were_seen():
    shell = make_shell(samples_per_insert=None)
    shell.insert(make_chunk(0, episodes=2))

    for _ in range(2):  # the first answer may be lost
        report = shell.report(0)
        assert (report["first_episode"], len(report["episodes"])) == (0, 2)
    shell.insert(make_chunk(1, episodes=1))
    report = shell.report(2)
    assert (report["first_episode"], len(report["episodes"])) == (2, 1)
    assert shell.report(3)["episodes"] == []


def test_slots_and_the_targets_they_acted_with_are_reported():
    shell = make_shell(samples_per_insert=None)
    for seq, target in enumerate((2, 2, 4)):
        shell.insert(make_chunk(seq, versions=(seq + 5, target)))
    shell.insert(make_chunk(0, slot=2, incarnation=3, versions=(8, 4)))

    assert shell.report()["slots"] == [[0, 0, 12, 12, 7, 4], [2, 3, 4, 4, 8, 4]]
    assert shell.targets_acted() == {0: [2, 4], 2: [4]}


def test_open_gate_lets_everybody_go(pool, monkeypatch):
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", TIMEOUT_S)
    shell = make_shell()
    sampling = pool.submit(shell.sample, 4)

    shell.open_gate()

    assert sampling.result(TIMEOUT_S) is None  # nothing to draw, but nobody waits
    held = [pool.submit(shell.insert, make_chunk(seq)) for seq in range(5)]
    assert all(accepted(future.result(TIMEOUT_S)) for future in held)


def test_calls_that_do_not_ask_the_limiter_never_wait():
    shell = make_shell()
    for seq in range(5):
        assert accepted(shell.insert(make_chunk(seq), wait=False))
    for _ in range(6):
        assert shell.draw(8) is not None


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


def test_reasons_of_refused_chunks_are_bounded_in_number_and_length():
    shell = make_shell()
    for index in range(2_000):
        data = wire.encode("chunk", {f"{index:05}{50_000 * 'x'}": index}, {})
        with pytest.raises(WireFormatError, match="fields must be"):
            shell.insert(data)
    for kind in range(40):
        with pytest.raises(WireFormatError, match="of kind"):
            shell.insert(wire.encode(f"kind {kind}", {}, {}))
    counts = shell.report()["malformed_chunks"]

    assert sum(counts.values()) == 2_040
    assert len(counts) <= 17
    assert len(json.dumps(counts)) < 5_000


def test_piece_is_the_same_whenever_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.shard_capture.PIECE_BYTES", 1)
    shell = make_shell(samples_per_insert=None, capacity=64)
    for seq in range(16):
        shell.insert(make_chunk(seq))
    wanted = [shell.freeze(True, next(CUTS)), *rest(shell)]

    got, number = [shell.freeze(True, next(CUTS))], 0
    while True:
        # The call behind it has overtaken it, and its own answer was lost once.
        later, first = shell.next_piece(number + 1), shell.next_piece(number)
        assert shell.next_piece(number) == first
        assert shell.next_piece(number + 1) == later
        if first[0] is None:
            break
        got.append(first[0])
        number += 1

    assert got == wanted
    assert len(got) > 4


CUTS = itertools.count(1)


def pulled(shell: ReplayServerShell) -> bytes:
    return b"".join([shell.freeze(True, next(CUTS)), *rest(shell)])


def rest(shell: ReplayServerShell) -> Iterator[bytes]:
    for number in itertools.count():
        parts = shell.next_piece(number, 3)
        if parts[0] is None:
            shell.drop_frozen()
            return
        yield join(parts)


def test_freeze_that_is_asked_for_twice_is_one_and_never_comes_back_after_the_end(monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.frozen_rows.BUFFER_BYTES", 1)
    shell = make_shell(samples_per_insert=None, capacity=8)
    shell.insert(make_chunk(0))
    head = shell.freeze(True, 5)
    shell.insert(make_chunk(1))
    assert shell.freeze(True, 5) == head
    pieces = list(rest(shell))
    shell.freeze(True, 5)
    assert shell.next_piece(0, 2) == [None, None]
    for seq in range(2, 9):  # nothing waits for a reader that does not come
        assert accepted(shell.insert(make_chunk(seq)))
    assert decode_capture(b"".join([head, *pieces])).arrays["column.n_step_return"].size == 4
    assert shell.freeze(True, 6) != head


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
    pieces = [
        shell.freeze(True, next(CUTS))
    ]  # nobody inserts before it: this is the moment that counts
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
    assert shell.next_piece(0, 2) == [None, None]


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
    pieces = list(enumerate(map(bytes, pieces_of(data, 700))))
    assert len(pieces) > 4
    pieces[1:3] = pieces[2:0:-1]  # one overtakes another
    for number, piece in pieces:
        other.restore_piece(number, *split(piece, 3))
        other.restore_piece(number, *split(piece, 3))  # its answer was lost
    other.end_restore()
    other._core.check_valid()
    inserted = other.stats()[1]
    assert 80 <= inserted <= 160
    held = np.sort(decode_capture(pulled(other)).arrays["column.n_step_return"])
    np.testing.assert_array_equal(held, np.arange(inserted - 64, inserted))


def test_insert_that_overruns_a_cut_waits_for_the_reader_or_its_end(pool, monkeypatch):
    monkeypatch.setattr("qfleet.replay_server.frozen_rows.BUFFER_BYTES", 1)
    shell = make_shell(samples_per_insert=None, capacity=8)
    for seq in range(2):
        shell.insert(make_chunk(seq))
    shell.freeze(True, next(CUTS))
    assert accepted(shell.insert(make_chunk(2)))  # into the empty buffer

    waiting = pool.submit(shell.insert, make_chunk(3))
    until(lambda: len(shell._inserting) == 1)
    shell.next_piece(0)
    assert accepted(waiting.result(TIMEOUT_S))
    waiting = pool.submit(shell.insert, make_chunk(4))
    shell.drop_frozen()
    assert accepted(waiting.result(TIMEOUT_S))
    assert shell.next_piece(0, 2) == [None, None]


def test_cut_of_a_large_shard_needs_no_second_copy_of_it():
    shell = make_shell(samples_per_insert=None, capacity=400_000)
    for seq in range(40):
        shell.insert(make_chunk(seq, rows=10_000))
    row_bytes = shell._core._storage.row_bytes
    tracemalloc.start()

    shell.freeze(True, next(CUTS))
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

    one, pieces = whole.sample(4), in_pieces.sample(4, 3)

    assert len(pieces) == 3
    expected, actual = decode_shard_sample(one), decode_shard_sample(join(pieces))
    np.testing.assert_array_equal(actual.item_keys, expected.item_keys)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(actual.columns[name], column)


def test_sample_held_back_is_none_in_every_piece(monkeypatch):
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", 0.01)

    assert make_shell().sample(4, 3) == [None, None, None]


def test_update_priorities_of_several_messages_applies_them_in_order():
    shell = make_shell(sampling="prioritized", priority_exponent=1.0)
    shell.insert(make_chunk(0))
    keys = np.arange(4)
    first = PriorityUpdate(keys, np.full(4, 9.0))
    second = PriorityUpdate(keys[:1], np.array([1.0]))

    applied = shell.update_priorities(*map(encode_priority_update, (first, second)))

    assert applied == 5
    sample = decode_shard_sample(shell.draw(8))
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
