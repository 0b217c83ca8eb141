from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.actors.n_step import NStepAccumulator
from qfleet.common import capture_stream
from qfleet.common.arrays_check import check_columns
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.common.types import EnvironmentSpec, transition_columns
from qfleet.common.vector_envs import StepResult

SPEC = EnvironmentSpec("test", (1,), "<f4", 9, None, None)


def _result(rewards, terminated, truncated, is_transition, next_observations):
    nexts = np.array(next_observations, np.float32).reshape(-1, 1)
    flags = [np.array(part, bool) for part in (terminated, truncated, is_transition)]
    return StepResult(nexts, np.array(rewards, np.float64), *flags, nexts)


def _play_one(n_step, discount, rewards, end):
    """One sub-environment: states 0, 1, 2, …, action = state; `end` holds for the last step.

    Returns a row (s, a, R, discount, s') per transition and the step that completed it.
    """
    accumulator = NStepAccumulator(1, n_step, discount, SPEC)
    rows = []
    for t, reward in enumerate(rewards):
        last = t == len(rewards) - 1
        result = _result(
            [reward], [last and end == "terminated"], [last and end == "truncated"], [True], [t + 1]
        )
        columns = accumulator.push(np.array([[t]], np.float32), np.array([t]), result)
        accumulator.check_valid()
        rows += _rows(columns, t)
    return accumulator, rows


def _rows(columns, step):
    if columns is None:
        return []
    check_columns(columns, transition_columns(SPEC), len(columns["action"]))
    return [
        (float(s[0]), int(a), float(r), float(d), float(n[0]), step)
        for s, a, r, d, n in zip(*columns.values(), strict=True)
    ]


@pytest.mark.parametrize(
    ("n_step", "rewards", "end", "expected"),
    [
        (1, [1, 2], None, [(0, 0, 1, 0.5, 1, 0), (1, 1, 2, 0.5, 2, 1)]),
        (1, [1, 2], "terminated", [(0, 0, 1, 0.5, 1, 0), (1, 1, 2, 0.0, 2, 1)]),
        (1, [1, 2], "truncated", [(0, 0, 1, 0.5, 1, 0), (1, 1, 2, 0.5, 2, 1)]),
        (2, [1], None, []),
        (2, [1], "terminated", [(0, 0, 1, 0.0, 1, 0)]),
        (2, [1], "truncated", [(0, 0, 1, 0.5, 1, 0)]),
        (2, [1, 2], None, [(0, 0, 2, 0.25, 2, 1)]),
        (2, [1, 2], "terminated", [(0, 0, 2, 0.0, 2, 1), (1, 1, 2, 0.0, 2, 1)]),
        (2, [1, 2], "truncated", [(0, 0, 2, 0.25, 2, 1), (1, 1, 2, 0.5, 2, 1)]),
        (
            2,
            [1, 2, 4],
            "truncated",
            [(0, 0, 2, 0.25, 2, 1), (1, 1, 4, 0.25, 3, 2), (2, 2, 4, 0.5, 3, 2)],
        ),
        (3, [1], "terminated", [(0, 0, 1, 0.0, 1, 0)]),
        (3, [1], "truncated", [(0, 0, 1, 0.5, 1, 0)]),
        (3, [1, 2], "terminated", [(0, 0, 2, 0.0, 2, 1), (1, 1, 2, 0.0, 2, 1)]),
        (3, [1, 2], "truncated", [(0, 0, 2, 0.25, 2, 1), (1, 1, 2, 0.5, 2, 1)]),
        (
            3,
            [1, 2, 4],
            "terminated",
            [(0, 0, 3, 0.0, 3, 2), (1, 1, 4, 0.0, 3, 2), (2, 2, 4, 0.0, 3, 2)],
        ),
        (
            3,
            [1, 2, 4, 8],
            "truncated",
            [
                (0, 0, 3, 0.125, 3, 2),
                (1, 1, 6, 0.125, 4, 3),
                (2, 2, 8, 0.25, 4, 3),
                (3, 3, 8, 0.5, 4, 3),
            ],
        ),
        (3, [1, 2, 4, 8], None, [(0, 0, 3, 0.125, 3, 2), (1, 1, 6, 0.125, 4, 3)]),
    ],
)
def test_accumulator_single_episode_equals_hand_table(n_step, rewards, end, expected):
    accumulator, rows = _play_one(n_step, 0.5, rewards, end)

    assert rows == expected
    assert accumulator.produced == len(expected)
    assert accumulator.pending == len(rewards) - len(expected)


def test_accumulator_orders_oldest_window_first_then_sub_env():
    accumulator = NStepAccumulator(3, 2, 1.0, SPEC)
    running = [False] * 3
    accumulator.push(
        np.array([[10], [20], [30]], np.float32),
        np.zeros(3, int),
        _result([1, 1, 1], running, running, [True] * 3, [11, 21, 31]),
    )

    columns = accumulator.push(
        np.array([[11], [21], [31]], np.float32),
        np.zeros(3, int),
        _result([1, 1, 1], [True, False, False], [False, False, True], [True] * 3, [12, 22, 32]),
    )

    assert columns["observation"][:, 0].tolist() == [10, 20, 30, 11, 31]
    assert columns["n_step_return"].tolist() == [2, 2, 2, 1, 1]
    assert columns["bootstrap_discount"].tolist() == [0, 1, 1, 0, 1]
    assert accumulator.pending == 1


def test_accumulator_reset_step_does_nothing():
    accumulator = NStepAccumulator(2, 2, 0.9, SPEC)
    off = [False, False]

    columns = accumulator.push(
        np.zeros((2, 1), np.float32), np.zeros(2, int), _result([5, 5], off, off, off, [1, 1])
    )

    assert columns is None
    assert (accumulator.opened, accumulator.pending, accumulator.produced) == (0, 0, 0)


def test_accumulator_terminated_and_truncated_at_once_does_not_bootstrap():
    accumulator = NStepAccumulator(1, 1, 0.9, SPEC)

    columns = accumulator.push(
        np.zeros((1, 1), np.float32), np.zeros(1, int), _result([1], [True], [True], [True], [1])
    )

    assert columns["bootstrap_discount"].tolist() == [0.0]


def test_accumulator_sums_in_float64():
    accumulator = NStepAccumulator(1, 3, 1.0, SPEC)
    columns = None
    for t, reward in enumerate([1.0, 2.0**40, -(2.0**40)]):
        columns = accumulator.push(
            np.array([[t]], np.float32),
            np.zeros(1, int),
            _result([reward], [False], [False], [True], [t + 1]),
        )

    assert columns["n_step_return"].tolist() == [1.0]  # float32 would lose the 1


class _NaiveAccumulator:
    """One deque per sub-environment, written down from the definition."""

    def __init__(self, n_envs, n_step, discount):
        self.windows = [deque() for _ in range(n_envs)]
        self.n_step, self.discount = n_step, discount

    def push(self, observations, actions, result):
        completed = []
        for e, windows in enumerate(self.windows):
            if not result.is_transition[e]:
                continue
            windows.append((observations[e, 0], actions[e], []))
            for window in windows:
                window[2].append(result.rewards[e])
            ended = result.terminated[e] or result.truncated[e]
            while windows and (ended or len(windows[0][2]) == self.n_step):
                s, a, rewards = windows.popleft()
                k = len(rewards)
                total = sum(self.discount**i * r for i, r in enumerate(rewards))
                bootstrap = 0.0 if result.terminated[e] else self.discount**k
                completed.append((-k, e, s, a, total, bootstrap, result.next_observations[e, 0]))
        return [row[2:] for row in sorted(completed, key=lambda row: row[:2])]


def _random_steps(rng, n_envs, n_steps, next_step):
    """Steps in the pattern of a NEXT_STEP (or SAME_STEP) vector environment."""
    awaiting = np.zeros(n_envs, bool)
    for t in range(n_steps):
        is_transition = ~awaiting
        terminated = (rng.random(n_envs) < 0.15) & is_transition
        truncated = (rng.random(n_envs) < 0.15) & is_transition
        awaiting = (terminated | truncated) if next_step else np.zeros(n_envs, bool)
        observations = rng.normal(size=(n_envs, 1)).astype(np.float32)
        result = _result(
            rng.normal(size=n_envs),
            terminated,
            truncated,
            is_transition,
            rng.normal(size=n_envs),
        )
        yield observations, rng.integers(0, 9, n_envs) + 0 * t, result


@settings(max_examples=60, deadline=None)
@given(
    n_envs=st.integers(1, 5),
    n_step=st.integers(1, 5),
    discount=st.sampled_from([1.0, 0.9, 0.5]),
    next_step=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_accumulator_equals_naive_deques(n_envs, n_step, discount, next_step, seed):
    accumulator = NStepAccumulator(n_envs, n_step, discount, SPEC)
    oracle = _NaiveAccumulator(n_envs, n_step, discount)
    produced = 0
    for observations, actions, result in _random_steps(
        np.random.default_rng(seed), n_envs, 40, next_step
    ):
        expected = oracle.push(observations, actions, result)
        rows = _rows(accumulator.push(observations, actions, result), 0)
        observations[:] = np.nan  # the caller's array may be written to afterwards

        accumulator.check_valid()
        assert len(rows) == len(expected)
        for row, wanted in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row[:5], wanted, rtol=1e-6, atol=1e-6)
        produced += len(rows)
        assert accumulator.produced == produced
        assert accumulator.pending == sum(len(windows) for windows in oracle.windows)


def test_accumulator_rows_survive_later_pushes():
    rng = np.random.default_rng(0)
    accumulator = NStepAccumulator(4, 3, 0.9, SPEC)
    handed_out = []
    for step in _random_steps(rng, 4, 60, True):
        columns = accumulator.push(*step)
        if columns is not None:
            handed_out.append((columns, {name: array.copy() for name, array in columns.items()}))

    for columns, copies in handed_out:
        assert all(np.array_equal(columns[name], copies[name]) for name in copies)


def test_drop_pending_forgets_open_windows_and_counts_them():
    accumulator, _ = _play_one(3, 0.5, [1, 2], None)

    assert accumulator.drop_pending() == 2
    accumulator.check_valid()
    columns = accumulator.push(
        np.array([[7]], np.float32), np.array([7]), _result([4], [False], [True], [True], [8])
    )

    assert _rows(columns, 0) == [(7, 7, 4, 0.5, 8, 0)]
    assert (accumulator.dropped, accumulator.produced, accumulator.pending) == (2, 1, 0)


def test_accumulator_restored_mid_episode_continues_exactly():
    steps = list(_random_steps(np.random.default_rng(3), 4, 80, True))
    original = NStepAccumulator(4, 3, 0.9, SPEC)
    for step in steps[:37]:
        original.push(*step)
    assert original.pending > 0
    copy = NStepAccumulator(4, 3, 0.9, SPEC)

    copy.restore(
        capture_stream.decode_capture(b"".join(capture_stream.encode_capture(original.capture())))
    )

    copy.check_valid()
    for step in steps[37:]:
        expected, actual = original.push(*step), copy.push(*step)
        assert (expected is None) == (actual is None)
        if expected is not None:
            assert all(np.array_equal(expected[name], actual[name]) for name in expected)
    assert (copy.opened, copy.produced) == (original.opened, original.produced)


@pytest.mark.parametrize(("n_envs", "n_step"), [(2, 3), (4, 2)])
def test_accumulator_of_other_size_refuses_restore(n_envs, n_step):
    capture = NStepAccumulator(4, 3, 0.9, SPEC).capture()

    with pytest.raises(CheckpointError, match=r"actors\.n_step"):
        NStepAccumulator(n_envs, n_step, 0.9, SPEC).restore(capture)


@pytest.mark.parametrize("arguments", [(0, 1, 0.9), (1, 0, 0.9), (1, 1, 0.0), (1, 1, 1.1)])
def test_accumulator_refuses_impossible_settings(arguments):
    with pytest.raises(ValueError, match=r"actors\.n_step, actors\.discount"):
        NStepAccumulator(*arguments, SPEC)


def test_check_valid_finds_a_lost_window():
    accumulator, _ = _play_one(3, 0.5, [1, 2], None)
    accumulator._open[0] = 1

    with pytest.raises(InvariantError, match="2 windows opened"):
        accumulator.check_valid()
