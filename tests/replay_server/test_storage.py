"""The ring storage beside a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common.capture_stream import ArrayFiller, Rows
from qfleet.common.errors import InvariantError
from qfleet.common.types import ColumnSpec
from qfleet.replay_server.storage import RingStorage

SPECS = (ColumnSpec("x", "<f4", (2,)), ColumnSpec("y", "<i4", ()))


def rows(first: int, n: int) -> dict[str, np.ndarray]:
    """Rows that are recognisable by the number that was counted when they were made."""
    numbers = np.arange(first, first + n)
    return {"x": np.stack([numbers, -numbers], axis=1).astype("<f4"), "y": numbers.astype("<i4")}


def test_append_wraps_and_gather_returns_newest():
    storage = RingStorage(SPECS, 4)

    assert storage.append(rows(0, 3), 1.0).tolist() == [0, 1, 2]
    assert storage.append(rows(3, 3), 2.0).tolist() == [3, 4, 5]

    slots = np.array([0, 1, 2, 3, 0])
    assert (storage.size, storage.appended) == (4, 6)
    assert storage.keys_at(slots).tolist() == [4, 5, 2, 3, 4]
    assert storage.gather(slots)["y"].tolist() == [4, 5, 2, 3, 4]
    assert storage.gather(slots)["x"].tolist() == [[4, -4], [5, -5], [2, -2], [3, -3], [4, -4]]
    assert storage.inserted_at_s.tolist() == [2.0, 2.0, 1.0, 2.0]
    assert storage.is_current(np.array([-1, 1, 2, 5, 6])).tolist() == [0, 0, 1, 1, 0]
    assert storage.slots_of(np.array([2, 3, 4, 5])).tolist() == [2, 3, 0, 1]
    storage.check_valid()


def test_append_more_than_capacity_keeps_last_rows_and_uses_all_keys():
    storage = RingStorage(SPECS, 4)
    storage.append(rows(0, 1), 0.0)

    keys = storage.append(rows(1, 10), 1.0)

    assert keys.tolist() == list(range(1, 11))
    assert storage.keys_at(np.arange(4)).tolist() == [8, 9, 10, 7]
    assert storage.gather(np.arange(4))["y"].tolist() == [8, 9, 10, 7]
    storage.check_valid()


def test_append_wrong_columns_raises_and_writes_nothing():
    storage = RingStorage(SPECS, 4)
    columns = rows(0, 3)
    columns["y"] = columns["y"][:2]

    with pytest.raises(InvariantError, match="column y"):
        storage.append(columns, 0.0)

    assert (storage.size, storage.appended) == (0, 0)


def test_constructor_capacity_zero_raises():
    with pytest.raises(ValueError, match="at least 1"):
        RingStorage(SPECS, 0)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(-1, 25), max_size=15))
def test_operations_random_equal_list_oracle(capacity, sizes):
    storage, oracle, skipped = RingStorage(SPECS, capacity), [], 0
    for n in sizes:
        if n < 0:
            storage.clear()
            skipped += -(len(oracle) + skipped) % capacity
            live_from = len(oracle)
        else:
            keys = storage.append(rows(len(oracle), n), float(len(oracle)))
            assert keys.tolist() == [len(oracle) + skipped + i for i in range(n)]
            oracle += range(len(oracle), len(oracle) + n)
            live_from = len(oracle) - storage.size

        storage.check_valid()
        assert storage.appended == len(oracle) + skipped
        slots = np.arange(storage.size)
        keys = storage.keys_at(slots)
        assert sorted(storage.gather(slots)["y"].tolist()) == oracle[live_from:]
        assert (storage.gather(slots)["y"] == keys - skipped).all()
        assert (keys % capacity == slots).all()
        assert (storage.slots_of(keys) == slots).all()
        assert storage.is_current(keys).all()
        assert not storage.is_current(keys - storage.size).any()


def test_clear_never_gives_a_key_again():
    storage = RingStorage(SPECS, 4)
    old = storage.append(rows(0, 6), 0.0)

    storage.clear()
    new = storage.append(rows(6, 2), 0.0)

    assert not storage.is_current(old).any()
    assert new.tolist() == [8, 9]
    assert storage.keys_at(np.array([0, 1])).tolist() == [8, 9]
    storage.check_valid()


def restore(storage: RingStorage, meta: dict, rows: list[Rows]) -> None:
    filler = ArrayFiller(storage.restored_arrays(meta))
    for part in rows:
        filler.put(part)
    filler.check_complete()
    storage.end_restore(meta)


@pytest.mark.parametrize("n", [0, 3, 4, 11])
def test_frozen_rows_restored_are_the_storage(n):
    storage, other = RingStorage(SPECS, 4), RingStorage(SPECS, 4)
    storage.append(rows(0, n), 5.0)
    other.append(rows(50, 3), 1.0)
    frozen = storage.freeze()
    meta = storage.capture_meta(contents=True)

    assert other.differences(meta) == []
    restore(other, meta, [part for _ in range(4) for part in frozen.take(1)])

    slots = np.arange(storage.size)
    assert (other.size, other.appended) == (storage.size, storage.appended)
    for name, column in storage.gather(slots).items():
        assert np.array_equal(other.gather(slots)[name], column)
    assert np.array_equal(other.inserted_at_s[slots], storage.inserted_at_s[slots])
    assert other.append(rows(9, 3), 6.0).tolist() == storage.append(rows(9, 3), 6.0).tolist()
    other.check_valid()


def test_restore_without_contents_is_empty_and_keys_go_on():
    storage, other = RingStorage(SPECS, 4), RingStorage(SPECS, 4)
    storage.append(rows(0, 6), 0.0)

    restore(other, storage.capture_meta(contents=False), [])

    assert (other.size, other.appended) == (0, 8)
    other.check_valid()


def test_differences_name_capacity_and_specs():
    meta = RingStorage(SPECS, 4).capture_meta(contents=True)
    assert RingStorage(SPECS, 4).differences(meta) == []

    capacity, specs = RingStorage(SPECS[:1], 5).differences(meta)

    assert capacity == "capacity is 4, here 5"
    assert "'y'" in specs


def test_check_valid_wrong_counters_raise():
    storage = RingStorage(SPECS, 4)
    storage.append(rows(0, 3), 0.0)
    storage._appended = 2
    with pytest.raises(InvariantError, match="size 3 with 2"):
        storage.check_valid()
    storage._appended = 4
    with pytest.raises(InvariantError, match="do not end at key 4"):
        storage.check_valid()
