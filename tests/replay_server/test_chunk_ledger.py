"""The ledger's questions: they change nothing, and say what `admit` will say."""

from __future__ import annotations

import copy

import numpy as np

from qfleet.common.types import ChunkId
from qfleet.replay_server.chunk_ledger import ChunkLedger


def test_status_of_is_what_admit_says_and_changes_nothing():
    ledger, rng = ChunkLedger("run"), np.random.default_rng(3)
    seen = set()
    for _ in range(2000):
        run_id = "run" if rng.random() < 0.95 else "other"
        slot, incarnation, seq = (int(n) for n in rng.integers([2, 3, 12]))
        chunk_id = ChunkId(run_id, slot, incarnation, seq)
        before = copy.deepcopy(ledger.capture())

        told = ledger.status_of(chunk_id)

        assert ledger.capture() == before
        assert ledger.admit(chunk_id) == told
        seen.add(told)
    assert seen == {"accepted", "duplicate", "stale_incarnation", "foreign_run"}


def test_chunk_comes_early_while_lower_numbers_of_its_incarnation_are_missing():
    ledger = ChunkLedger("run")
    assert not ledger.comes_early(ChunkId("run", 0, 4, 0))
    assert ledger.comes_early(ChunkId("run", 0, 4, 1))
    ledger.admit(ChunkId("run", 0, 4, 0))
    assert not ledger.comes_early(ChunkId("run", 0, 4, 1))
    ledger.admit(ChunkId("run", 0, 4, 2))
    assert ledger.comes_early(ChunkId("run", 0, 4, 3))
    assert ledger.comes_early(ChunkId("run", 0, 5, 1))
    assert not ledger.comes_early(ChunkId("run", 0, 5, 0))


def test_what_went_to_a_predecessor_is_not_awaited_and_counts_as_a_gap():
    ledger = ChunkLedger("run")
    for seq in (0, 1, 2):
        ledger.admit(ChunkId("run", 0, 4, seq))
    ledger.admit(ChunkId("run", 0, 4, 9))  # it overtook what is said now

    ledger.begin_at(0, 4, 7)
    assert ledger.gap_chunks == 4  # 3 to 6
    assert ledger.status_of(ChunkId("run", 0, 4, 5)) == "duplicate"
    assert [ledger.admit(ChunkId("run", 0, 4, seq)) for seq in (9, 7, 8)] == [
        "duplicate",
        "accepted",
        "accepted",
    ]
    assert not ledger.comes_early(ChunkId("run", 0, 4, 10))
    ledger.check_valid()

    ledger.begin_at(0, 4, 3)  # said late: nothing goes back
    ledger.begin_at(0, 3, 50)  # of an actor that was replaced
    assert (ledger.hwm(0), ledger.gap_chunks) == (9, 4)
    ledger.begin_at(1, 0, 6)  # nothing is known of that slot
    assert not ledger.comes_early(ChunkId("run", 1, 0, 6))
