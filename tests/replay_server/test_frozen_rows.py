"""Frozen rows are those of the moment of freezing, whatever is inserted, and bounded in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common.capture_stream import ArrayFiller
from qfleet.common.types import ColumnSpec
from qfleet.replay_server import frozen_rows
from qfleet.replay_server.storage import RingStorage

SPECS = (ColumnSpec("value", "<i8", ()), ColumnSpec("pair", "<f4", (2,)))
ROW_BYTES = 8 + 8 + 8


def rows(first, n):
    value = np.arange(first, first + n)
    return {"value": value, "pair": np.stack([value, -value], axis=1).astype(np.float32)}


def exact(storage):
    """The oracle: one copy at once."""
    return {
        "column.value": storage.gather(np.arange(storage.size))["value"].copy(),
        "column.pair": storage.gather(np.arange(storage.size))["pair"].copy(),
        "inserted_at_s": storage.inserted_at_s[: storage.size].copy(),
    }


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 30),
    st.lists(st.tuples(st.booleans(), st.integers(1, 15)), max_size=20),
)
def test_frozen_rows_random_inserts_equal_one_copy(capacity, before, steps):
    storage = RingStorage(SPECS, capacity)
    if before:
        storage.append(rows(0, before), now_s=1.0)
    wanted = exact(storage)
    got = {name: np.zeros_like(array) for name, array in wanted.items()}
    filler = ArrayFiller(got)  # refuses rows that are missing, doubled or out of order
    frozen = storage.freeze()
    inserted = before
    for is_insert, n in steps:
        if is_insert:
            storage.append(rows(inserted, n), now_s=float(n))
            inserted += n
        else:
            for part in frozen.take(n * ROW_BYTES):
                filler.put(part)
    while parts := frozen.take(5 * ROW_BYTES):
        for part in parts:
            filler.put(part)
    filler.check_complete()
    assert frozen.buffered_bytes == 0
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    storage.check_valid()


def test_insert_keeps_only_what_it_overwrites():
    storage = RingStorage(SPECS, 10)
    storage.append(rows(0, 8), now_s=0.0)
    frozen = storage.freeze()
    storage.append(rows(8, 2), now_s=0.0)  # into free slots
    assert frozen.buffered_bytes == 0
    storage.append(rows(10, 3), now_s=0.0)  # over the three oldest
    assert frozen.buffered_bytes == 3 * ROW_BYTES
    assert frozen.take(1)[0].values.tolist() == [0, 1, 2]
    storage.append(rows(13, 1), now_s=0.0)
    assert frozen.take(1)[0].values.tolist() == [3]
    assert frozen.take(1)[0].values.tolist() == [4]
    storage.append(rows(14, 1), now_s=0.0)  # over the fourth, which was given out already
    assert frozen.buffered_bytes == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=60))
def test_buffer_stays_within_its_limit_when_inserts_ask_for_room(steps):
    limit = 4 * ROW_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_rows, "BUFFER_BYTES", limit)
        storage = RingStorage(SPECS, 20)
        storage.append(rows(0, 20), now_s=0.0)
        frozen = storage.freeze()
        for is_insert, n in steps:
            if not is_insert:
                frozen.take(n * ROW_BYTES)
            elif storage.has_room(n):
                storage.append(rows(0, n), now_s=0.0)
            # One insert that is larger than the buffer comes in while it is empty.
            assert frozen.buffered_bytes <= max(limit, 6 * ROW_BYTES)


def test_released_rows_cost_inserts_nothing():
    storage = RingStorage(SPECS, 4)
    storage.append(rows(0, 4), now_s=0.0)
    frozen = storage.freeze()
    frozen.release()
    storage.append(rows(4, 4), now_s=0.0)
    assert frozen.buffered_bytes == 0
    assert storage.has_room(100)


@pytest.mark.parametrize("size", [0, 3])
def test_freeze_of_a_part_filled_ring_gives_its_rows(size):
    storage = RingStorage(SPECS, 5)
    if size:
        storage.append(rows(0, size), now_s=0.0)
    frozen = storage.freeze()
    values = []
    while parts := frozen.take(ROW_BYTES):
        values += parts[0].values.tolist()
    assert values == list(range(size))
