"""From draws of several shards to K batches, with importance weights that are right over all.

Pure functions called by the block runner and the Ray shell. A draw's probability is the share of
its shard in this request times its probability within the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qfleet.common.prioritization import importance_weights
from qfleet.common.types import Array, ReplaySample, ShardSample


def split_draws(n_draws: int, masses: Sequence[float], rng: np.random.Generator) -> list[int]:
    """How many of `n_draws` each shard answers: multinomial by sampling mass.

    One shard with mass takes all without a random number, so a second, empty shard changes nothing.
    """
    mass = np.asarray(masses, dtype=np.float64)
    if mass.sum() <= 0.0:
        raise ValueError(f"no shard has anything to draw: masses are {list(masses)}")
    if np.count_nonzero(mass) == 1:
        return [n_draws if m > 0 else 0 for m in mass]
    return [int(n) for n in rng.multinomial(n_draws, mass / mass.sum())]


def slices(
    parts: Sequence[ShardSample], splits: Sequence[Sequence[int]]
) -> list[list[ShardSample]]:
    """The answers to one request for several blocks, cut into those of each block.

    `splits[block][shard]` draws belong to a block. Draws come in random order, so each one of any
    cut has the probability that it would have in a request of its own. Where they are independent
    (uniform, proportional) so has the whole cut; by rank they are stratified over the request.
    """
    blocks: list[list[ShardSample]] = []
    taken = {part.shard: 0 for part in parts}
    for split in splits:
        block = []
        for part in parts:
            first, n = taken[part.shard], split[part.shard]
            taken[part.shard] += n
            if n:
                rows = slice(first, first + n)
                columns = {name: column[rows] for name, column in part.columns.items()}
                keys, probabilities = part.item_keys[rows], part.probabilities[rows]
                news = part.new_frames
                if news is not None and first:
                    news = news.without_frames()  # they came with the first block
                block.append(
                    replace(
                        part,
                        columns=columns,
                        item_keys=keys,
                        probabilities=probabilities,
                        new_frames=news,
                    )
                )
        blocks.append(block)
    return blocks


def assemble(
    parts: Sequence[ShardSample],
    masses: Sequence[float],
    n_batches: int,
    importance_exponent: float | None,
    rng: np.random.Generator,
) -> ReplaySample:
    """The parts of one request as K batches `[K, B, …]`.

    Draws of several shards are permuted, so that no batch is of one shard alone. `masses` are those
    that split the request; `importance_exponent` None (uniform replay) gives weights of exactly 1.
    """
    n = sum(len(part.item_keys) for part in parts)
    order = rng.permutation(n) if len(parts) > 1 else None

    def batched(arrays: list[Array]) -> Array:
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        picked = joined if order is None else joined[order]
        return picked.reshape(n_batches, n // n_batches, *joined.shape[1:])

    columns = {name: batched([part.columns[name] for part in parts]) for name in parts[0].columns}
    keys = batched([part.item_keys for part in parts])
    shards = batched([np.full(len(p.item_keys), p.shard, dtype=np.int32) for p in parts])
    if importance_exponent is None:
        weights = np.ones(keys.shape, dtype=np.float32)
    else:
        total = float(np.sum(masses))
        probabilities = batched([p.probabilities * (masses[p.shard] / total) for p in parts])
        size = sum(part.stats.size for part in parts)
        weights = importance_weights(probabilities, size, importance_exponent)
    news = {part.shard: part.new_frames for part in parts if part.new_frames is not None}
    return ReplaySample(columns, keys, shards, weights, new_frames=news or None)
