"""Both samplers against hand-computed probabilities, frequencies and round trips."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rank_sampler import RankSampler
from qfleet.replay_server.samplers import ProportionalSampler, UniformSampler, make_sampler


def proportional(capacity: int, seed: int = 0, **changes: float) -> ProportionalSampler:
    exponents = {"priority_exponent": 0.5, "priority_epsilon": 1e-12, **changes}
    return ProportionalSampler(capacity, np.random.default_rng(seed), **exponents)


def replay_plan(**changes) -> ReplayPlan:
    fields = {
        "seed": 3,
        "num_cpus": 0.5,
        "capacity": 8,
        "sampling": "prioritized",
        "compression": "none",
        "priority_exponent": 1.0,
        "priority_epsilon": 1e-6,
        "min_size_to_sample": 1,
        "samples_per_insert": None,
        "limiter_tolerance_samples": 1,
        "largest_chunk_transitions": 1,
        "largest_request_samples": 1,
    }
    return ReplayPlan(**{**fields, **changes})


@pytest.mark.parametrize(
    ("sampling", "cls"),
    [("uniform", UniformSampler), ("prioritized", ProportionalSampler), ("rank", RankSampler)],
)
def test_make_sampler_kind_follows_the_plan(sampling, cls):
    sampler = make_sampler(replay_plan(sampling=sampling), np.random.default_rng(0))

    assert type(sampler) is cls
    assert sampler.kind == sampling


def test_make_sampler_prioritized_uses_the_plans_formula():
    plan = replay_plan(priority_exponent=2.0, priority_epsilon=0.5)
    sampler = make_sampler(plan, np.random.default_rng(0))

    sampler.on_insert(np.arange(2), np.array([0.5, 1.5]))

    assert sampler.mass == 5.0  # (0.5 + 0.5)² + (1.5 + 0.5)²


def test_uniform_sample_frequencies_and_probabilities():
    sampler = UniformSampler(np.random.default_rng(1))
    sampler.on_insert(np.arange(5), None)

    slots, probabilities = sampler.sample(50_000, 5)

    assert np.bincount(slots, minlength=5) / 50_000 == pytest.approx(np.full(5, 0.2), abs=0.008)
    assert (probabilities == 0.2).all()
    assert sampler.mass == 5.0
    sampler.check_valid(5)
    with pytest.raises(InvariantError, match="draws from 5 items, storage holds 4"):
        sampler.check_valid(4)


def test_proportional_sample_frequencies_follow_square_root_of_td_errors():
    sampler = proportional(6, seed=2)
    sampler.on_insert(np.arange(4), np.array([1.0, 4.0, 9.0, 16.0]))

    slots, probabilities = sampler.sample(100_000, 4)

    expected = np.array([0.1, 0.2, 0.3, 0.4])
    assert np.bincount(slots, minlength=4) / 100_000 == pytest.approx(expected, abs=0.006)
    assert probabilities == pytest.approx(expected[slots], rel=1e-9)
    assert sampler.mass == pytest.approx(10.0)
    sampler.check_valid(4)


def test_proportional_draws_are_independent_not_stratified():
    # Stratified halves of two equal items would give [0, 1] every time.
    sampler = proportional(2, seed=3)
    sampler.on_insert(np.arange(2), None)

    pairs = np.array([sampler.sample(2, 2)[0] for _ in range(4000)])

    assert (pairs[:, 0] == pairs[:, 1]).mean() == pytest.approx(0.5, abs=0.03)


def test_proportional_new_items_get_largest_td_error_so_far():
    sampler = proportional(8)

    sampler.on_insert(np.array([0]), None)
    assert sampler.mass == pytest.approx(1.0)  # nothing known: |δ| counts as 1
    sampler.on_insert(np.array([1]), np.array([0.25]))
    sampler.on_insert(np.array([2]), None)
    assert sampler.mass == pytest.approx(1.0 + 0.5 + 1.0)
    sampler.update(np.array([1]), np.array([9.0]))
    sampler.update(np.array([1]), np.array([0.0]))
    sampler.on_insert(np.array([3, 4]), None)

    assert sampler.max_td_error_abs == 9.0
    assert sampler.mass == pytest.approx(1.0 + 0.0 + 1.0 + 3.0 + 3.0, abs=1e-5)
    sampler.check_valid(5)


def test_proportional_insert_wraps_around_the_ring():
    sampler = proportional(4)
    sampler.on_insert(np.arange(4), np.array([1.0, 1.0, 1.0, 1.0]))

    sampler.on_insert(np.array([3, 0]), np.array([4.0, 16.0]))

    assert sampler.mass == pytest.approx(4.0 + 1.0 + 1.0 + 2.0)
    sampler.check_valid(4)


def test_proportional_update_repeated_slot_last_wins():
    sampler = proportional(4)
    sampler.on_insert(np.arange(2), np.array([1.0, 1.0]))

    sampler.update(np.array([0, 0]), np.array([100.0, 4.0]))

    assert sampler.mass == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_proportional_bad_td_error_raises_and_changes_nothing(bad):
    sampler = proportional(4)
    sampler.on_insert(np.arange(2), np.array([1.0, 4.0]))

    with pytest.raises(ValueError, match="finite"):
        sampler.update(np.array([0, 1]), np.array([5.0, bad]))
    with pytest.raises(ValueError, match="finite"):
        sampler.on_insert(np.array([2]), np.array([bad]))

    assert sampler.mass == pytest.approx(3.0)
    assert sampler.max_td_error_abs == 4.0
    sampler.check_valid(2)


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_capture_round_trip_gives_same_tree_and_next_draws(sampling):
    plan, rng = replay_plan(sampling=sampling, capacity=300), np.random.default_rng(4)
    sampler = make_sampler(plan, np.random.default_rng(5))
    sampler.on_insert(np.arange(200), rng.random(200))
    for _ in range(20):
        slots, _ = sampler.sample(64, 200)
        sampler.update(slots, rng.random(64) * 3)
    other = make_sampler(plan, np.random.default_rng(99))
    other.on_insert(np.arange(300), None)

    other.restore(decode_capture(b"".join(encode_capture(sampler.capture()))))

    assert other.mass == sampler.mass
    for ours, theirs in zip(sampler.sample(500, 200), other.sample(500, 200), strict=True):
        assert np.array_equal(ours, theirs)
    sampler.on_insert(np.array([200]), None)
    other.on_insert(np.array([200]), None)
    assert other.mass == sampler.mass
    if isinstance(sampler, ProportionalSampler) and isinstance(other, ProportionalSampler):
        assert other._tree._nodes.tobytes() == sampler._tree._nodes.tobytes()
    other.check_valid(201)


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_restore_without_contents_is_empty(sampling):
    sampler = make_sampler(replay_plan(sampling=sampling), np.random.default_rng(0))
    sampler.on_insert(np.arange(8), None)

    sampler.restore(sampler.capture(contents=False))

    assert sampler.mass == 0.0
    sampler.check_valid(0)


def test_restore_other_kind_formula_or_capacity_raises():
    uniform = UniformSampler(np.random.default_rng(0))
    with pytest.raises(CheckpointError, match=r"'uniform', this run 'prioritized'"):
        proportional(4).restore(uniform.capture())
    with pytest.raises(CheckpointError, match=r"replay\.priority_exponent is 0\.5, here 0\.6"):
        proportional(4, priority_exponent=0.6).restore(proportional(4).capture())
    with pytest.raises(CheckpointError, match=r"4,.*here .*5,"):
        proportional(5).restore(proportional(4).capture())


def test_proportional_check_valid_size_differs_raises():
    sampler = proportional(4)
    sampler.on_insert(np.arange(2), None)

    for size in (1, 3):
        with pytest.raises(InvariantError, match=f"exactly {size} slots"):
            sampler.check_valid(size)
