"""How often each item is drawn from one and from two shards, beside the exact probabilities.

As the learner draws: split by the shards' masses, drawn within each, put together as batches; while
items are overwritten and priorities change. `tests/integration/test_ray_shards.py` has the same of
an asynchronous run over real processes.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from qfleet.common.types import ChunkId, EnvironmentSpec, PriorityUpdate, TransitionChunk
from qfleet.learner.sampling import assemble, split_draws
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import RatioLimiter
from qfleet.replay_server.replay_shard import ReplayShard

SPEC = EnvironmentSpec("CartPole-v1", (2,), "<f4", 2, 475.0, 500)
CAPACITY, EXPONENT, EPSILON, BETA = 32, 0.6, 1e-3, 0.5
N_BATCHES, BATCH, REQUESTS = 4, 32, 500
SIGNIFICANCE = 1e-6


def full_shard(
    number: int, sampling: str, rng: np.random.Generator
) -> tuple[ReplayShard, np.ndarray]:
    """32 items by slot with their |δ|, after the ring went round and a third was learned from."""
    # Errors of the second shard are three times as large: their masses differ.
    errors = (1 + 2 * number) * rng.exponential(size=48)
    plan = ReplayPlan(
        seed=11,
        num_cpus=0.5,
        capacity=CAPACITY,
        sampling=sampling,
        compression="none",
        priority_exponent=EXPONENT,
        priority_epsilon=EPSILON,
        min_size_to_sample=1,
        samples_per_insert=None,
        limiter_tolerance_samples=1,
        largest_chunk_transitions=8,
        largest_request_samples=1,
    )
    shard = ReplayShard(plan, SPEC, RatioLimiter(None, 1, 0), run_id="r", shard=number)
    for seq in range(6):
        observation = np.zeros((8, 2), "<f4")
        columns = {
            "observation": observation,
            "action": np.zeros(8, "<i4"),
            "n_step_return": np.zeros(8, "<f4"),
            "bootstrap_discount": np.zeros(8, "<f4"),
            "next_observation": observation,
        }
        chunk_id, own = ChunkId("r", number, 0, seq), errors[8 * seq : 8 * seq + 8]
        shard.insert(TransitionChunk(chunk_id, columns, own, 0, 9, ()), 0.0)
    keys = rng.choice(np.arange(16, 48), CAPACITY // 3, replace=False)
    errors[keys] = rng.exponential(size=len(keys))
    assert shard.update_priorities(PriorityUpdate(keys, errors[keys])) == len(keys)
    return shard, np.roll(errors[16:], 16)


def exact_probabilities(sampling: str, errors: np.ndarray) -> np.ndarray:
    """Within a shard, by the paper's formulas, item by item."""
    if sampling == "prioritized":
        weights = (errors + EPSILON) ** EXPONENT
    else:
        mantissas, exponents = np.frexp(errors.astype(np.float32))
        ranked = np.ldexp(np.floor(512 * mantissas), exponents)  # equal to 9 binary digits: by slot
        falling = sorted(range(len(errors)), key=lambda slot: -ranked[slot])
        weights = np.empty(len(errors))
        weights[falling] = [rank**-EXPONENT for rank in range(1, len(errors) + 1)]
    return weights / weights.sum()


@pytest.mark.parametrize("sampling", ["prioritized", "rank"])
@pytest.mark.parametrize("n_shards", [1, 2])
def test_every_item_is_drawn_as_often_as_its_probability_says(n_shards, sampling) -> None:
    rng = np.random.default_rng([5, n_shards])
    shards, errors = zip(*(full_shard(i, sampling, rng) for i in range(n_shards)), strict=True)
    masses = [shard.stats().mass for shard in shards]
    if sampling == "rank":
        assert masses == [CAPACITY] * n_shards
    else:
        assert masses == pytest.approx([((each + EPSILON) ** EXPONENT).sum() for each in errors])
    shares = np.array(masses) / sum(masses)
    exact = np.array(
        [s * exact_probabilities(sampling, e) for s, e in zip(shares, errors, strict=True)]
    )
    counts = np.zeros((n_shards, CAPACITY), dtype=int)

    for _ in range(REQUESTS):
        split = split_draws(N_BATCHES * BATCH, masses, rng)
        parts = [shard.sample(n, 0.0) for shard, n in zip(shards, split, strict=True) if n]
        sample = assemble(parts, masses, N_BATCHES, BETA, rng)
        slots = sample.item_keys % CAPACITY
        np.add.at(counts, (sample.shards, slots), 1)
        weights = exact[sample.shards, slots] ** -BETA
        expected = weights / weights.max(axis=1, keepdims=True)
        np.testing.assert_allclose(sample.is_weights, expected, rtol=1e-5)

    n = REQUESTS * N_BATCHES * BATCH
    assert counts.sum() == n
    assert chisquare(counts.ravel(), n * exact.ravel()).pvalue > SIGNIFICANCE
    if n_shards == 2 and sampling == "prioritized":  # halves would be seen through
        wrong = exact / shares[:, None] / 2
        assert chisquare(counts.ravel(), n * wrong.ravel()).pvalue < SIGNIFICANCE
