"""Counters and versions by slot against a plain recount."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qfleet.common.errors import InvariantError
from qfleet.common.types import ChunkId, EpisodeSummary, TransitionChunk
from qfleet.replay_server.slot_records import TARGETS_KEPT, SlotRecords


def chunk(slot, incarnation, env_steps, target, episodes=0, params=0):
    ended = (EpisodeSummary(slot, 0, 1.0, 1, 0.1, True),) * episodes
    columns = {"action": np.zeros(env_steps, np.int32)}
    name = ChunkId("run", slot, incarnation, 0)
    return TransitionChunk(name, columns, None, params, env_steps, ended, target_version=target)


def test_records_are_kept_per_slot_over_incarnations_and_survive_a_capture():
    records = SlotRecords()
    records.accepted(chunk(1, 0, 5, 3, episodes=2, params=4), 5)
    records.accepted(chunk(0, 0, 2, 0), 1)  # one row of two was stored
    records.accepted(chunk(1, 7, 3, 6, params=8), 3)

    restored = SlotRecords()
    restored.restore(json.loads(json.dumps(records.capture())))

    for each in (records, restored):
        assert [tuple(slot) for slot in each.stats()] == [(0, 0, 2, 1, 0, 0), (1, 7, 8, 8, 8, 6)]
        assert (each.env_steps, each.episodes) == (10, 2)
        assert each.targets_acted() == {0: [], 1: [3, 6]}


def test_totals_are_those_of_the_slots_also_of_what_was_played_and_did_not_come():
    records = SlotRecords()
    records.accepted(chunk(0, 0, 5, 0, episodes=1), 5)
    records.played_at_least({0: 3, 2: 9})  # of slot 0 more is known already
    records.played_at_least({0: 8, 2: 9})
    records.accepted(chunk(2, 0, 1, 0), 1)

    assert [slot.env_steps for slot in records.stats()] == [8, 10]
    assert (records.env_steps, records.episodes) == (18, 1)
    records.check_valid()
    records.env_steps += 1
    with pytest.raises(InvariantError, match="19, 1 counted"):
        records.check_valid()


def test_targets_grow_only_and_no_more_than_so_many_are_kept():
    records = SlotRecords()
    for target in (2, 2, 4, 3, 4):  # two chunks changed places on their way
        records.accepted(chunk(0, 0, 1, target), 1)
    assert records.targets_acted() == {0: [2, 4]}

    for target in range(5, 5 + 2 * TARGETS_KEPT):
        records.accepted(chunk(0, 0, 1, target), 1)
    kept = records.targets_acted()[0]
    assert (len(kept), kept[-1]) == (TARGETS_KEPT, 4 + 2 * TARGETS_KEPT)
    restored = SlotRecords()
    restored.restore(records.capture())
    restored.accepted(chunk(0, 0, 1, 10**6), 1)
    assert len(restored.targets_acted()[0]) == TARGETS_KEPT
