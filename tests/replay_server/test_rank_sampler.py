"""Ranks, probabilities and frequencies of the rank-based sampler, beside a naive one."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.replay_server.rank_sampler import CHANGED_TO_SORT, RankSampler


def rank_sampler(capacity: int, seed: int = 0, exponent: float = 0.7) -> RankSampler:
    return RankSampler(capacity, np.random.default_rng(seed), priority_exponent=exponent)


def exact_probabilities(td_errors_abs: np.ndarray, exponent: float) -> np.ndarray:
    """P(i) of every item by the paper's formula, item by item."""
    falling = sorted(range(len(td_errors_abs)), key=lambda i: (-td_errors_abs[i], i))
    weights = {slot: (1.0 / (1 + place)) ** exponent for place, slot in enumerate(falling)}
    total = sum(weights.values())
    return np.array([weights[slot] / total for slot in range(len(td_errors_abs))])


def test_probabilities_by_hand() -> None:
    sampler = rank_sampler(4, exponent=1.0)
    sampler.on_insert(np.arange(3), np.array([5.0, 100.0, 7.0]))

    slots, probabilities = sampler.sample(3_000, 3)

    # 1 + 1/2 + 1/3 = 11/6: slot 1 ranks first, then 2, then 0; how far apart does not matter.
    expected = {1: 6 / 11, 2: 3 / 11, 0: 2 / 11}
    assert {int(s): p for s, p in zip(slots, probabilities, strict=True)} == pytest.approx(expected)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
def test_frequencies_follow_the_exact_distribution(exponent: float) -> None:
    rng = np.random.default_rng(1)
    errors = rng.exponential(size=50)
    sampler = rank_sampler(64, seed=2, exponent=exponent)
    sampler.on_insert(np.arange(50), errors)
    expected = exact_probabilities(errors, exponent)

    n_calls, n = 400, 64
    drawn = np.concatenate([sampler.sample(n, 50)[0] for _ in range(n_calls)])

    counts = np.bincount(drawn, minlength=50)
    chi2 = float((((counts - n * n_calls * expected) ** 2) / (n * n_calls * expected)).sum())
    assert chi2 < 85.4  # the 0.999 quantile with 49 degrees; stratified draws stay well below
    _, probabilities = sampler.sample(n, 50)
    assert set(np.round(probabilities, 12)) <= set(np.round(expected, 12))


def test_draws_are_stratified_and_in_random_order() -> None:
    sampler = rank_sampler(8, exponent=0.0)
    sampler.on_insert(np.arange(8), np.arange(8.0))

    calls = [sampler.sample(8, 8)[0] for _ in range(200)]

    # Eight equal ranges over eight equal items: one of each in every call, in any order.
    assert all(sorted(slots) == list(range(8)) for slots in calls)
    first = np.bincount([int(slots[0]) for slots in calls], minlength=8)
    assert first.min() >= 8  # of an expected 25


def test_ranks_under_random_operations_are_those_of_the_last_sort() -> None:
    rng = np.random.default_rng(3)
    sampler, errors = rank_sampler(200, seed=4), np.zeros(200)
    size = 0
    for _ in range(300):
        n = int(rng.integers(1, 20))
        if size < 200:
            slots = np.arange(size, min(200, size + n))
            size = int(slots[-1]) + 1
            new = rng.exponential(size=len(slots))
            sampler.on_insert(slots, new)
        else:
            slots = rng.choice(200, n, replace=False)
            new = rng.exponential(size=n)
            sampler.update(slots, new)
        errors[slots] = new
        sampler.sample(5, size)
        sampler.check_valid(size)
    sampler.update(np.arange(200), errors)  # more than the share: sorted at the next draw

    slots, probabilities = sampler.sample(4_000, 200)

    keys = errors.astype(np.float32).view(np.uint32) >> 15
    expected = exact_probabilities(keys.astype(float), 0.7)
    assert probabilities == pytest.approx(expected[slots])


def test_few_changes_wait_for_the_next_sort_and_probabilities_are_those_in_use() -> None:
    sampler = rank_sampler(1_000, exponent=1.0)
    sampler.on_insert(np.arange(1_000), 1.01 ** np.arange(1_000))
    sampler.sample(1, 1_000)
    first = 1.0 / np.sum(1.0 / np.arange(1, 1_001))

    few = int(1_000 * CHANGED_TO_SORT)
    sampler.update(np.arange(few), np.full(few, 1e9))
    slots, probabilities = sampler.sample(2_000, 1_000)
    assert probabilities[slots == 999] == pytest.approx(first)
    sampler.update(np.array([few]), np.array([1e10]))
    slots, probabilities = sampler.sample(2_000, 1_000)

    assert probabilities[slots == few] == pytest.approx(first)


def test_newcomers_between_two_sorts_rank_first_the_newest_at_the_front() -> None:
    sampler = rank_sampler(2_000, exponent=1.0)
    sampler.on_insert(np.arange(1_000), np.full(1_000, 3.0))
    sampler.sample(1, 1_000)

    sampler.on_insert(np.array([1_000, 1_001]), None)
    slots, probabilities = sampler.sample(5_000, 1_002)

    total = np.sum(1.0 / np.arange(1, 1_003))
    assert probabilities[slots == 1_001] == pytest.approx(1.0 / total)
    assert probabilities[slots == 1_000] == pytest.approx(0.5 / total)
    assert probabilities[slots == 0] == pytest.approx(1.0 / 3.0 / total)


def test_item_without_a_priority_counts_as_the_largest_so_far() -> None:
    sampler = rank_sampler(8, exponent=1.0)
    sampler.on_insert(np.array([0, 1]), np.array([4.0, 9.0]))
    sampler.on_insert(np.array([2]), None)
    sampler.on_insert(np.array([3]), np.array([8.0]))

    slots, probabilities = sampler.sample(1_000, 4)

    total = 1 + 1 / 2 + 1 / 3 + 1 / 4
    ranks = {1: 1, 2: 2, 3: 3, 0: 4}  # 9, 9 by slot, 8, 4
    wanted = [1 / ranks[int(slot)] / total for slot in slots]
    assert probabilities == pytest.approx(np.array(wanted))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_td_error_raises_and_changes_nothing(bad: float) -> None:
    sampler = rank_sampler(4)
    sampler.on_insert(np.arange(2), np.array([1.0, 4.0]))

    with pytest.raises(ValueError, match="finite"):
        sampler.update(np.array([0, 1]), np.array([5.0, bad]))
    with pytest.raises(ValueError, match="finite"):
        sampler.on_insert(np.array([2]), np.array([bad]))

    assert sampler.mass == 2.0
    sampler.check_valid(2)


def test_capture_round_trip_gives_the_same_next_draws() -> None:
    rng = np.random.default_rng(5)
    sampler, other = rank_sampler(300, seed=6), rank_sampler(300, seed=7)
    sampler.on_insert(np.arange(200), rng.random(200))
    for _ in range(20):
        slots, _ = sampler.sample(64, 200)
        sampler.update(slots[:4], rng.random(4))

    other.restore(decode_capture(b"".join(encode_capture(sampler.capture()))))

    for one in (sampler, other):
        one.on_insert(np.array([200, 201]), None)
        one.check_valid(202)
    for _ in range(5):
        for ours, theirs in zip(sampler.sample(100, 202), other.sample(100, 202), strict=True):
            assert np.array_equal(ours, theirs)


def test_capture_without_contents_is_an_empty_sampler() -> None:
    sampler, other = rank_sampler(8), rank_sampler(8)
    sampler.on_insert(np.arange(5), None)

    other.restore(sampler.capture(contents=False))

    other.check_valid(0)
    assert other.mass == 0.0


@pytest.mark.parametrize(
    ("kind", "exponent", "capacity", "text"),
    [
        ("uniform", 0.7, 8, "samples 'uniform', this run 'rank'"),
        ("rank", 0.6, 8, r"replay.priority_exponent is 0.6, here 0.7"),
        ("rank", 0.7, 9, r"9,.*here .*8,"),
    ],
)
def test_restore_refuses_what_does_not_fit(
    kind: str, exponent: float, capacity: int, text: str
) -> None:
    other = rank_sampler(capacity, exponent=exponent)
    other.on_insert(np.arange(4), None)
    capture = other.capture()
    capture.meta["kind"] = kind
    sampler = rank_sampler(8)
    sampler.on_insert(np.arange(2), None)

    with pytest.raises(CheckpointError, match=text):
        sampler.restore(capture)

    sampler.check_valid(2)


def test_check_valid_finds_a_broken_order() -> None:
    sampler = rank_sampler(4)
    sampler.on_insert(np.arange(4), None)
    sampler.sample(1, 4)
    sampler.check_valid(4)

    with pytest.raises(InvariantError, match="ranks 4 items, storage holds 3"):
        sampler.check_valid(3)
    sampler._order[0] = sampler._order[1]
    with pytest.raises(InvariantError, match="no permutation"):
        sampler.check_valid(4)


def test_draws_over_two_shards_follow_the_mixture_of_their_ranks() -> None:
    """As the learner draws: split by mass, then by rank within each shard."""
    rng = np.random.default_rng(8)
    errors = [rng.exponential(size=30), rng.exponential(size=10)]
    shards = [rank_sampler(32, seed=9), rank_sampler(32, seed=10)]
    for sampler, own in zip(shards, errors, strict=True):
        sampler.on_insert(np.arange(len(own)), own)
    masses = np.array([sampler.mass for sampler in shards])
    assert masses.tolist() == [30.0, 10.0]
    counts = [np.zeros(30), np.zeros(10)]
    n_calls, n = 400, 64

    for _ in range(n_calls):
        for i, draws in enumerate(rng.multinomial(n, masses / masses.sum())):
            slots, _ = shards[i].sample(int(draws), len(errors[i]))
            np.add.at(counts[i], slots, 1)

    expected = np.concatenate(
        [m / 40 * exact_probabilities(own, 0.7) for m, own in zip(masses, errors, strict=True)]
    )
    seen = np.concatenate(counts)
    chi2 = float(((seen - n * n_calls * expected) ** 2 / (n * n_calls * expected)).sum())
    assert chi2 < 72.1  # the 0.999 quantile with 39 degrees
