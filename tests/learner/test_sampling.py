import dataclasses

import numpy as np
import pytest

from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.types import ReplayStats, ShardSample
from qfleet.learner.sampling import assemble, slices, split_draws


def part(shard: int, n: int, size: int, seed: int = 0) -> ShardSample:
    """Draws whose every column tells the item key it belongs to."""
    rng = np.random.default_rng([seed, shard])
    keys = rng.integers(0, size, n) + 1_000 * shard
    columns = {
        "observation": np.stack([keys, -keys], axis=1).astype(np.float32),
        "action": keys.astype(np.int32),
        "n_step_return": keys.astype(np.float32) / 2,
    }
    stats = ReplayStats(size, size, 0, 0, float(size), 0, 0, 0, 0)
    return ShardSample(shard, columns, keys, (keys % 7 + 1) / 1_000, stats, 0.0)


def test_split_draws_frequencies_follow_the_masses():
    rng = np.random.default_rng(7)
    masses = [1.0, 3.0, 0.0, 4.0]

    splits = np.array([split_draws(64, masses, rng) for _ in range(4_000)])

    assert (splits.sum(axis=1) == 64).all()
    assert (splits[:, 2] == 0).all()
    # Standard error of a mean count: √(64·¼/4000) ≈ 0.06; five of them.
    np.testing.assert_allclose(splits.mean(axis=0), [8.0, 24.0, 0.0, 32.0], atol=0.32)
    # Multinomial, not a fixed share: variance n·p·(1 − p).
    np.testing.assert_allclose(splits.var(axis=0), [7.0, 15.0, 0.0, 16.0], rtol=0.12)


@pytest.mark.parametrize(
    ("masses", "expected"), [([5.0], [64]), ([0.0, 1e-9], [0, 64]), ([2.0, 0.0, 0.0], [64, 0, 0])]
)
def test_split_draws_one_shard_with_mass_takes_all_without_a_random_number(masses, expected):
    rng = np.random.default_rng(1)

    assert split_draws(64, masses, rng) == expected

    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


@pytest.mark.parametrize("masses", [[], [0.0], [0.0, 0.0]])
def test_split_draws_without_mass_raises(masses):
    with pytest.raises(ValueError, match="no shard has anything to draw"):
        split_draws(8, masses, np.random.default_rng(0))


def test_split_draws_gives_plain_integers():
    assert all(type(n) is int for n in split_draws(10, [1.0, 2.0], np.random.default_rng(0)))


def test_assemble_one_part_keeps_its_order_without_a_random_number():
    rng = np.random.default_rng(1)
    only = part(0, 12, 100)

    sample = assemble([only], [100.0], 3, None, rng)

    assert sample.n_batches == 3
    assert sample.columns["observation"].shape == (3, 4, 2)
    np.testing.assert_array_equal(sample.item_keys.ravel(), only.item_keys)
    np.testing.assert_array_equal(sample.columns["action"].ravel(), only.columns["action"])
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


def test_assemble_two_parts_keeps_every_item_together_and_mixes_the_shards():
    parts = [part(0, 20, 100), part(2, 44, 300)]

    sample = assemble(parts, [100.0, 50.0, 300.0], 4, None, np.random.default_rng(3))

    keys = sample.item_keys
    assert (keys.shape, keys.dtype) == ((4, 16), np.int64)
    assert (sample.shards.shape, sample.shards.dtype) == ((4, 16), np.int32)
    np.testing.assert_array_equal(sample.shards, keys // 1_000)
    np.testing.assert_array_equal(sample.columns["action"], keys)
    np.testing.assert_array_equal(sample.columns["observation"][..., 0], keys)
    np.testing.assert_array_equal(sample.columns["observation"][..., 1], -keys)
    np.testing.assert_array_equal(sample.columns["n_step_return"], keys / 2)
    together = np.concatenate([p.item_keys for p in parts])
    assert sorted(keys.ravel()) == sorted(together)
    assert all(set(row) == {0, 2} for row in sample.shards.tolist())


def test_assemble_uniform_weights_are_exactly_one():
    sample = assemble([part(0, 4, 9), part(1, 4, 9)], [9, 9], 2, None, np.random.default_rng(0))

    assert sample.is_weights.dtype == np.float32
    assert (sample.is_weights == 1.0).all()


def test_assemble_weights_equal_those_of_the_union_by_hand():
    parts = [part(0, 10, 40), part(1, 6, 200)]
    masses = [3.0, 9.0]
    beta = 0.7

    sample = assemble(parts, masses, 2, beta, np.random.default_rng(5))

    for row in range(2):
        weights = []
        for key, shard in zip(sample.item_keys[row], sample.shards[row], strict=True):
            within = (key % 7 + 1) / 1_000
            probability = within * masses[shard] / 12.0
            weights.append((240 * probability) ** -beta)
        expected = np.array(weights) / max(weights)
        np.testing.assert_allclose(sample.is_weights[row], expected, rtol=1e-6)
        assert sample.is_weights[row].max() == 1.0


def test_assemble_leaves_its_parts_alone():
    parts = [part(0, 4, 9), part(1, 4, 9)]
    for p in parts:
        for array in (*p.columns.values(), p.item_keys, p.probabilities):
            array.flags.writeable = False

    assemble(parts, [9.0, 9.0], 2, 0.5, np.random.default_rng(0))


def test_slices_cut_every_answer_into_the_blocks_it_was_asked_for():
    splits = [[3, 0, 1], [0, 0, 4], [2, 0, 2]]
    parts = [part(0, 5, 50), part(2, 7, 70)]  # nothing was asked of shard 1

    blocks = slices(parts, splits)

    assert [[(p.shard, len(p.item_keys)) for p in block] for block in blocks] == [
        [(0, 3), (2, 1)],
        [(2, 4)],
        [(0, 2), (2, 2)],
    ]
    for index, whole in enumerate(parts):
        pieces = [p for block in blocks for p in block if p.shard == whole.shard]
        for name, column in whole.columns.items():
            joined = np.concatenate([p.columns[name] for p in pieces])
            np.testing.assert_array_equal(joined, column, err_msg=f"{index} {name}")
        keys = np.concatenate([p.item_keys for p in pieces])
        np.testing.assert_array_equal(keys, whole.item_keys)
        probabilities = np.concatenate([p.probabilities for p in pieces])
        np.testing.assert_array_equal(probabilities, whole.probabilities)


def test_slices_bring_new_frames_with_the_first_draws_of_their_answer():
    news = NewFrames("r", 3, 9, np.arange(4), np.zeros((4, 2, 2), np.uint8), np.arange(4))
    parts = [dataclasses.replace(part(i, 5, 50), new_frames=news) for i in (0, 1)]

    blocks = slices(parts, [[2, 0], [2, 4], [1, 1]])

    brought = [
        [(p.shard, p.new_frames.answer, p.new_frames.places.tolist()) for p in block]
        for block in blocks
    ]
    every = [0, 1, 2, 3]
    assert brought == [[(0, 3, every)], [(0, 3, []), (1, 3, every)], [(0, 3, []), (1, 3, [])]]
    assert [len(block[0].new_frames.frames) for block in blocks] == [4, 0, 0]
    assert [len(block[0].new_frames.since) for block in blocks] == [4, 0, 0]


def test_slices_of_one_block_are_the_parts_themselves():
    parts = [part(0, 5, 50), part(1, 7, 70)]

    [block] = slices(parts, [[5, 7]])

    for got, wanted in zip(block, parts, strict=True):
        assert got.stats is wanted.stats
        np.testing.assert_array_equal(got.item_keys, wanted.item_keys)
