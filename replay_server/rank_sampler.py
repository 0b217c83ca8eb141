"""Draws by rank: the item with the r-th largest |TD error| in proportion to (1/r)^α.

Chosen by `samplers.make_sampler` for `replay.sampling: rank`. Outliers do not matter: only the
order of the errors does.

Source: Schaul et al. 2016 (Prioritized Experience Replay), sec. 3.3 (rank-based variant).
Differs: the paper approximates the sorted array by a binary heap. Here it is an array that is
sorted anew after a share of its items has changed, which NumPy does for all draws of a request at
once; the probabilities are always those of the order in use, so importance weights are exact.
Differs: errors that agree to 9 binary digits (0.4 %) rank by slot: sorting is then linear.
Differs: ranks are those within one shard, and a shard's mass is its number of items: with equal
memories a draw is from the mixture of the shards' distributions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qfleet.common.capture_stream import Shapes, shapes_of
from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.common.types import Array, Capture
from qfleet.replay_server.sampler import INITIAL_TD_ERROR_ABS, check_kind, check_td_errors

CHANGED_TO_SORT = 1 / 32
"""Sorted anew when more than this share of the items was written or updated since: an item's rank
is then off by at most as much of the memory, and a sort is paid for by so many changes."""
_LOWER_BITS = 15
"""Of a float32 without its sign, what is left out of a 16-bit key."""


class RankSampler:
    """P(i) = r_i^−α / Σ r^−α over the ranks r = 1…size; see `sampler.Sampler`.

    Invariant: `_order[:_ranked]` is a permutation of the slots 0…_ranked−1 by falling |δ| as of the
    last sort; items newer than that in slots from `_ranked` on come before them, newest first.
    Draws are stratified: n equal ranges of probability give one each, in random order.
    """

    kind = "rank"

    def __init__(
        self, capacity: int, rng: np.random.Generator, *, priority_exponent: float
    ) -> None:
        self._capacity, self._rng, self._exponent = capacity, rng, priority_exponent
        ranks = np.arange(1, capacity + 1, dtype=np.float64)
        self._weights = ranks**-priority_exponent
        self._cumulative = np.cumsum(self._weights)
        self._td_errors_abs = np.zeros(capacity)
        self._order = np.arange(capacity)
        self._size = self._ranked = self._changed = 0
        self._max_td_error_abs = INITIAL_TD_ERROR_ABS

    @property
    def mass(self) -> float:
        """Number of items."""
        return float(self._size)

    def on_insert(self, slots: Array, td_errors_abs: Array | None) -> None:
        """See `Sampler`."""
        if not len(slots):
            return
        if td_errors_abs is None:
            td_errors_abs = np.full(len(slots), self._max_td_error_abs)
        self._set(slots, td_errors_abs)
        self._size = max(self._size, int(slots.max()) + 1)

    def update(self, slots: Array, td_errors_abs: Array) -> None:
        """See `Sampler`."""
        if len(slots):
            self._set(slots, td_errors_abs)

    def _set(self, slots: Array, td_errors_abs: Array) -> None:
        check_td_errors(td_errors_abs)
        self._td_errors_abs[slots] = td_errors_abs
        self._max_td_error_abs = max(self._max_td_error_abs, float(td_errors_abs.max()))
        self._changed += len(slots)

    def sample(self, n: int, size: int) -> tuple[Array, Array]:
        """See `Sampler`; slots come in random order."""
        if self._changed > CHANGED_TO_SORT * size:
            self._sort()
        total = self._cumulative[size - 1]
        points = (np.arange(n) + self._rng.random(n)) * (total / n)
        ranks = np.searchsorted(self._cumulative[:size], points, side="right")
        # The last point may round up to the total.
        ranks = self._rng.permutation(np.minimum(ranks, size - 1))
        return self._slots_at(ranks), self._weights[ranks] / total

    def _slots_at(self, ranks: Array) -> Array:
        """The slots of ranks from 0 on: unsorted newcomers first, the newest at the very front."""
        newcomers = self._size - self._ranked
        sorted_ranks = ranks - newcomers
        return np.where(sorted_ranks < 0, self._size - 1 - ranks, self._order[sorted_ranks])

    def _sort(self) -> None:
        """Rank every item by its |δ| to 9 binary digits; equal ones by slot, the same anywhere.

        A positive float32's bits order as the number does; their upper half is sorted by radix, in
        linear time.
        """
        bits = self._td_errors_abs[: self._size].astype(np.float32).view(np.uint32)
        falling = ~(bits >> np.uint32(_LOWER_BITS)).astype(np.uint16)
        self._order[: self._size] = np.argsort(falling, kind="stable")
        self._ranked, self._changed = self._size, 0

    def capture(self, contents: bool = True) -> Capture:
        """See `Sampler`."""
        meta = {
            "kind": self.kind,
            "rng": self._rng.bit_generator.state,
            "max_td_error_abs": self._max_td_error_abs,
            "priority_exponent": self._exponent,
            "size": self._size if contents else 0,
            "ranked": self._ranked if contents else 0,
            "changed": self._changed if contents else 0,
        }
        arrays = {"td_errors_abs": self._td_errors_abs.copy(), "order": self._order.copy()}
        return Capture(meta, arrays if contents else {})

    def check_fits(self, meta: dict[str, Any], shapes: Shapes) -> None:
        """See `Sampler`."""
        check_kind(self.kind, meta)
        if meta["priority_exponent"] != self._exponent:
            raise CheckpointError(
                f"replay.priority_exponent is {meta['priority_exponent']}, here {self._exponent}"
            )
        wanted = shapes_of({"td_errors_abs": self._td_errors_abs, "order": self._order})
        if shapes and shapes != wanted:
            raise CheckpointError(f"sampler's arrays are {shapes}, here {wanted}")

    def restore(self, capture: Capture) -> None:
        """See `Sampler`."""
        self.check_fits(capture.meta, shapes_of(capture.arrays))
        meta, capacity = capture.meta, self._capacity
        errors = capture.arrays.get("td_errors_abs", np.zeros(capacity))
        order = capture.arrays.get("order", np.arange(capacity))
        self._td_errors_abs, self._order = errors.copy(), order.copy()
        self._size, self._ranked = meta["size"], meta["ranked"]
        self._changed = meta["changed"]
        self._rng.bit_generator.state = meta["rng"]
        self._max_td_error_abs = meta["max_td_error_abs"]

    def check_valid(self, size: int) -> None:
        """See `Sampler`."""
        if self._size != size:
            raise InvariantError(f"sampler ranks {self._size} items, storage holds {size}")
        if not np.array_equal(np.sort(self._order[: self._ranked]), np.arange(self._ranked)):
            raise InvariantError("the sampler's order is no permutation of its slots")
        if not self._ranked <= self._size <= self._capacity:
            raise InvariantError(f"{self._ranked} of {self._size} items are ranked")
