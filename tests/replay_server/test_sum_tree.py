"""The sum-tree beside a running sum, at edges and after long use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common.errors import InvariantError
from qfleet.replay_server.sum_tree import SumTree


def naive_find(values: np.ndarray, prefix_sum: float) -> int:
    """First slot whose running sum reaches the prefix sum and whose value is not zero."""
    running = 0.0
    for slot, value in enumerate(values):
        running += value
        if value > 0 and running >= prefix_sum:
            return slot
    return int(np.flatnonzero(values)[-1])


def test_find_small_table_returns_hand_computed_slots():
    tree = SumTree(5)

    tree.set(np.arange(5), np.array([2.0, 0.0, 3.0, 1.0, 0.0]))

    prefix_sums = np.array([0.0, 1.0, 2.0, 2.5, 5.0, 5.5, 6.0])
    assert tree.total == 6.0
    assert tree.find(prefix_sums).tolist() == [0, 0, 0, 2, 2, 3, 3]
    tree.check_valid()


def test_find_edges_never_return_a_zero_leaf():
    tree = SumTree(8)
    tree.set(np.array([2, 5]), np.array([0.1, 0.2]))

    found = tree.find(np.array([0.0, np.nextafter(tree.total, 1.0), tree.total, 1.0, 0.1]))

    assert found.tolist() == [2, 5, 5, 5, 2]


def test_find_does_not_change_its_argument():
    tree = SumTree(4)
    tree.set(np.arange(4), np.ones(4))
    prefix_sums = np.array([0.5, 3.5])

    tree.find(prefix_sums)

    assert prefix_sums.tolist() == [0.5, 3.5]


def test_find_all_zero_raises():
    with pytest.raises(ValueError, match="zeros"):
        SumTree(4).find(np.array([0.0]))


def test_set_repeated_slots_last_value_wins():
    tree = SumTree(10)

    tree.set(np.array([3, 7, 3, 3]), np.array([1.0, 2.0, 4.0, 8.0]))

    assert tree.get(np.array([3, 7])).tolist() == [8.0, 2.0]
    assert tree.total == 10.0
    tree.check_valid()


def test_capacity_one_and_nothing_to_set():
    tree = SumTree(1)
    tree.set(np.array([], dtype=np.int64), np.array([]))
    tree.set_range(0, np.array([]), 0)
    assert tree.total == 0.0

    tree.set(np.array([0]), np.array([2.5]))

    assert tree.total == 2.5
    assert tree.find(np.array([0.0, 1.0, 2.5])).tolist() == [0, 0, 0]
    tree.check_valid()


def test_capacity_zero_raises():
    with pytest.raises(ValueError, match="at least 1"):
        SumTree(0)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_operations_random_equal_naive_oracle(capacity, seed):
    rng = np.random.default_rng(seed)
    tree, values = SumTree(capacity), np.zeros(capacity)
    for _ in range(8):
        n = int(rng.integers(1, 2 * capacity + 1)) if rng.random() < 0.5 else 1
        slots = rng.integers(0, capacity, n)
        # Eighths add up without rounding, so that the oracle must agree exactly.
        new = rng.integers(0, 6, n) / 8.0
        if rng.random() < 0.3:
            start = int(rng.integers(0, capacity))
            n = min(n, capacity - start)
            tree.set_range(start, new[:n], n)
            values[start : start + n] = new[:n]
        else:
            tree.set(slots, new)
            for slot, value in zip(slots, new, strict=True):
                values[slot] = value

        tree.check_valid()
        assert np.array_equal(tree.leaves, values)
        assert tree.total == values.sum()
        if tree.total > 0:
            prefix_sums = np.append(rng.integers(0, int(tree.total * 8) + 1, 20) / 8, tree.total)
            assert tree.find(prefix_sums).tolist() == [naive_find(values, p) for p in prefix_sums]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_find_any_magnitudes_never_returns_zero_leaf(capacity, seed):
    rng = np.random.default_rng(seed)
    values = 10.0 ** rng.uniform(-18, 18, capacity) * (rng.random(capacity) < 0.4)
    values[rng.integers(0, capacity)] = 5e-324
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), values)
    edges = np.cumsum(values)
    prefix_sums = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, 0), [0]])

    found = tree.find(np.minimum(prefix_sums, tree.total))

    assert values[found].all()


def test_sparse_set_on_large_tree_equals_tree_built_at_once():
    rng = np.random.default_rng(1)
    sparse, dense = SumTree(100_000), SumTree(100_000)
    for n in (1, 7, 64, 1000, 64, 1):
        sparse.set(rng.integers(0, 100_000, n), rng.random(n))
        sparse.check_valid()

    dense.set_range(0, sparse.leaves, 100_000)

    assert dense.total == sparse.total
    prefix_sums = rng.random(5000) * dense.total
    assert np.array_equal(dense.find(prefix_sums), sparse.find(prefix_sums))


def test_long_use_leaves_no_drift():
    tree = SumTree(64)
    rng = np.random.default_rng(2)
    for _ in range(3000):
        tree.set(rng.integers(0, 64, 8), 10.0 ** rng.uniform(-12, 12, 8))

    tree.set(np.arange(64), np.full(64, 0.25))

    assert tree.total == 16.0


def test_find_frequencies_follow_values():
    tree, values = SumTree(4), np.array([1.0, 2.0, 0.0, 5.0])
    tree.set(np.arange(4), values)

    found = tree.find(np.random.default_rng(3).random(80_000) * tree.total)

    assert np.bincount(found, minlength=4) / 80_000 == pytest.approx(values / 8, abs=0.006)


def test_check_valid_wrong_node_raises():
    tree = SumTree(4)
    tree.set(np.arange(4), np.ones(4))
    tree.leaves[1] = 3.0

    with pytest.raises(InvariantError, match="node 2"):
        tree.check_valid()
    tree.leaves[1] = -1.0
    with pytest.raises(InvariantError, match="negative"):
        tree.check_valid()


def test_check_valid_value_beyond_capacity_raises():
    tree = SumTree(3)
    tree.set(np.array([3]) - 1, np.ones(1))
    tree._nodes[-1] = 1.0

    with pytest.raises(InvariantError, match="beyond"):
        tree.check_valid()
