"""A frozen copy equals the rows at the moment of freezing, whatever is inserted meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common.types import ColumnSpec
from qfleet.replay_server.storage import RingStorage

SPECS = (ColumnSpec("value", "<i8", ()), ColumnSpec("pair", "<f4", (2,)))


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


@settings(max_examples=150, deadline=None)
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
    frozen = storage.freeze()
    inserted = before
    for is_insert, n in steps:
        if is_insert:
            storage.append(rows(inserted, n), now_s=float(n))
            inserted += n
        else:
            frozen.advance(n)
    frozen.advance(capacity)
    assert frozen.is_complete
    assert list(frozen.copies) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(frozen.copies[name], array)
    storage.check_valid()


def test_insert_copies_only_what_it_overwrites():
    storage = RingStorage(SPECS, 10)
    storage.append(rows(0, 8), now_s=0.0)
    frozen = storage.freeze()
    storage.append(rows(8, 2), now_s=0.0)  # into free slots
    assert frozen._copied == 0
    storage.append(rows(10, 3), now_s=0.0)  # over the three oldest
    assert frozen._copied == 3


def test_second_freeze_completes_the_first():
    storage = RingStorage(SPECS, 4)
    storage.append(rows(0, 4), now_s=0.0)
    first = storage.freeze()
    storage.freeze()
    storage.append(rows(4, 4), now_s=0.0)
    assert first.is_complete
    assert first.copies["column.value"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, 3])
def test_freeze_of_a_part_filled_ring_holds_its_rows(size):
    storage = RingStorage(SPECS, 5)
    if size:
        storage.append(rows(0, size), now_s=0.0)
    frozen = storage.freeze()
    frozen.advance(1)
    assert frozen.is_complete == (size <= 1)
    frozen.advance(5)
    assert frozen.copies["column.value"].tolist() == list(range(size))
