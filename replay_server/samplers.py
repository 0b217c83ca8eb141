"""How a replay shard draws its items: uniformly, in proportion to priority, or by rank.

`make_sampler` chooses by configuration; the shard knows only the `Sampler` protocol, so another
distribution is one more class here. All draws are with replacement. Uniform and proportional ones
are independent; those by rank are stratified over a request and come in random order, so that each
one alone has the probability that is returned with it.

Source: Schaul et al. 2016, sec. 3.3 (proportional variant).
Differs: the paper draws one item from each of n equal ranges of the total (stratified); in
proportion we draw independently, so that draws compose over shards and the batches of a request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qfleet.common.capture_stream import Shapes, shapes_of
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.common.prioritization import sampling_weights
from qfleet.common.types import Array, Capture
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rank_sampler import RankSampler
from qfleet.replay_server.sampler import (
    INITIAL_TD_ERROR_ABS,
    Sampler,
    check_kind,
    check_td_errors,
)
from qfleet.replay_server.sum_tree import SumTree


def make_sampler(plan: ReplayPlan, rng: np.random.Generator) -> Sampler:
    """The sampler that `replay.sampling` names, over the shard's slots, drawing from `rng`."""
    if plan.sampling == "uniform":
        return UniformSampler(rng)
    if plan.sampling == "rank":
        return RankSampler(plan.capacity, rng, priority_exponent=plan.priority_exponent)
    return ProportionalSampler(
        plan.capacity,
        rng,
        priority_exponent=plan.priority_exponent,
        priority_epsilon=plan.priority_epsilon,
    )


class UniformSampler:
    """Every item is equally likely; priorities are ignored."""

    kind = "uniform"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._size = 0

    @property
    def mass(self) -> float:
        """Number of items."""
        return float(self._size)

    def on_insert(self, slots: Array, td_errors_abs: Array | None) -> None:
        """See `Sampler`."""
        if len(slots):
            self._size = max(self._size, int(slots.max()) + 1)

    def sample(self, n: int, size: int) -> tuple[Array, Array]:
        """See `Sampler`."""
        return self._rng.integers(0, size, n), np.full(n, 1.0 / size)

    def update(self, slots: Array, td_errors_abs: Array) -> None:
        """See `Sampler`; nothing changes."""
        check_td_errors(td_errors_abs)

    def capture(self, contents: bool = True) -> Capture:
        """See `Sampler`."""
        size = self._size if contents else 0
        return Capture({"kind": self.kind, "rng": self._rng.bit_generator.state, "size": size})

    def check_fits(self, meta: dict[str, Any], shapes: Shapes) -> None:
        """See `Sampler`."""
        check_kind(self.kind, meta)
        if shapes:
            raise CheckpointError(f"sampler's arrays are {shapes}, here none")

    def restore(self, capture: Capture) -> None:
        """See `Sampler`."""
        self.check_fits(capture.meta, shapes_of(capture.arrays))
        self._rng.bit_generator.state = capture.meta["rng"]
        self._size = capture.meta["size"]

    def check_valid(self, size: int) -> None:
        """See `Sampler`."""
        if self._size != size:
            raise InvariantError(f"sampler draws from {self._size} items, storage holds {size}")


class ProportionalSampler:
    """P(i) = w_i / Σ w with w = (|δ| + ε)^α, kept in a sum-tree.

    A new item without a priority counts as the largest |δ| seen so far, so that everything is
    soon drawn once (Schaul et al. 2016, algorithm 1).
    """

    kind = "prioritized"

    def __init__(
        self,
        capacity: int,
        rng: np.random.Generator,
        *,
        priority_exponent: float,
        priority_epsilon: float,
    ) -> None:
        self._tree = SumTree(capacity)
        self._rng = rng
        self._exponent = priority_exponent
        self._epsilon = priority_epsilon
        self._max_td_error_abs = INITIAL_TD_ERROR_ABS

    @property
    def mass(self) -> float:
        """Sum of all weights."""
        return self._tree.total

    @property
    def max_td_error_abs(self) -> float:
        """The |TD error| that new items without a priority get."""
        return self._max_td_error_abs

    def on_insert(self, slots: Array, td_errors_abs: Array | None) -> None:
        """See `Sampler`."""
        n = len(slots)
        if n == 0:
            return
        if td_errors_abs is None:
            newest = np.full(1, self._max_td_error_abs)
            weights = self._weights(newest).repeat(n)
        else:
            weights = self._weights(td_errors_abs)
        start = int(slots[0])
        until_end = min(n, self._tree.capacity - start)
        self._tree.set_range(start, weights[:until_end], until_end)
        self._tree.set_range(0, weights[until_end:], n - until_end)

    def _weights(self, td_errors_abs: Array) -> Array:
        """Their sampling weights; also keeps the largest |TD error|."""
        weights = sampling_weights(td_errors_abs, self._exponent, self._epsilon)
        self._max_td_error_abs = max(self._max_td_error_abs, float(np.max(td_errors_abs)))
        return weights

    def sample(self, n: int, size: int) -> tuple[Array, Array]:
        """See `Sampler`."""
        total = self._tree.total
        prefix_sums = self._rng.random(n)
        prefix_sums *= total
        slots = self._tree.find(prefix_sums)
        probabilities = self._tree.get(slots)
        probabilities /= total
        return slots, probabilities

    def update(self, slots: Array, td_errors_abs: Array) -> None:
        """See `Sampler`."""
        if len(slots):
            self._tree.set(slots, self._weights(td_errors_abs))

    def capture(self, contents: bool = True) -> Capture:
        """See `Sampler`."""
        meta = {
            "kind": self.kind,
            "rng": self._rng.bit_generator.state,
            "max_td_error_abs": self._max_td_error_abs,
            **self._formula(),
        }
        return Capture(meta, {"weights": self._tree.leaves.copy()} if contents else {})

    def _formula(self) -> dict[str, float]:
        """What the stored weights were computed with."""
        return {"priority_exponent": self._exponent, "priority_epsilon": self._epsilon}

    def check_fits(self, meta: dict[str, Any], shapes: Shapes) -> None:
        """See `Sampler`."""
        check_kind(self.kind, meta)
        for key, ours in self._formula().items():
            if meta[key] != ours:
                raise CheckpointError(f"replay.{key} is {meta[key]}, here {ours}")
        wanted = {"weights": ("<f8", (self._tree.capacity,))}
        if shapes and shapes != wanted:
            raise CheckpointError(f"sampler's arrays are {shapes}, here {wanted}")

    def restore(self, capture: Capture) -> None:
        """See `Sampler`; the tree is rebuilt from its leaves, which gives the same bits."""
        self.check_fits(capture.meta, shapes_of(capture.arrays))
        capacity = self._tree.capacity
        weights = capture.arrays.get("weights", np.zeros(capacity))
        self._tree.set_range(0, weights, capacity)
        self._rng.bit_generator.state = capture.meta["rng"]
        self._max_td_error_abs = capture.meta["max_td_error_abs"]

    def check_valid(self, size: int) -> None:
        """See `Sampler`."""
        self._tree.check_valid()
        leaves = self._tree.leaves
        if not leaves[:size].all() or leaves[size:].any():
            raise InvariantError(f"sampler's weights are not positive on exactly {size} slots")
