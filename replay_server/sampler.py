"""What a sampler is, and what all of them refuse.

A replay shard knows only this; `samplers.py` holds the distributions.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from qfleet.common.capture_stream import Shapes
from qfleet.common.errors import CheckpointError
from qfleet.common.types import Array, Capture

INITIAL_TD_ERROR_ABS = 1.0
"""What a new item without a priority counts as before any priority is known (the paper's p₁)."""


class Sampler(Protocol):
    """A distribution over the slots 0…size−1 of a ring; overwritten slots simply change weight."""

    kind: str
    """The value of `replay.sampling` that chose it."""

    @property
    def mass(self) -> float:
        """Sum of sampling weights: a draw's probability is its weight divided by it."""
        ...

    def on_insert(self, slots: Array, td_errors_abs: Array | None) -> None:
        """Items were written to `slots` int64 [n], consecutive in the ring and without repeats.

        Args:
            slots: where they lie now.
            td_errors_abs: float64 [n], or None when nobody has computed any.

        Raises:
            ValueError: when a TD error is negative or not finite; nothing was changed.
        """
        ...

    def sample(self, n: int, size: int) -> tuple[Array, Array]:
        """Draw n of `size` > 0 items: slots int64 [n], their probabilities float64 [n]."""
        ...

    def update(self, slots: Array, td_errors_abs: Array) -> None:
        """New |TD errors| for `slots`; of a repeated slot the last one wins.

        Raises:
            ValueError: when one is negative or not finite; nothing was changed.
        """
        ...

    def capture(self, contents: bool = True) -> Capture:
        """State including the generator's; without `contents`, none of it per item."""
        ...

    def check_fits(self, meta: dict[str, Any], shapes: Shapes) -> None:
        """Whether a capture of this meta and with arrays of these shapes can be restored.

        Raises:
            CheckpointError: when it is of another kind or does not fit.
        """
        ...

    def restore(self, capture: Capture) -> None:
        """Become the captured sampler; a capture without contents makes an empty one.

        Raises:
            CheckpointError: as `check_fits` does; nothing was changed.
        """
        ...

    def check_valid(self, size: int) -> None:
        """Raise `InvariantError` unless exactly the slots below `size` can be drawn."""
        ...


def check_td_errors(td_errors_abs: Array) -> None:
    """Raise `ValueError` when a |TD error| is negative, NaN or infinite."""
    # NaN fails every comparison, so the two ends tell all.
    if len(td_errors_abs) and not 0.0 <= td_errors_abs.min() <= td_errors_abs.max() < np.inf:
        raise ValueError("priorities must be finite and not negative")


def check_kind(kind: str, meta: dict[str, Any]) -> None:
    """Raise `CheckpointError` when a capture of this `meta` is of another kind of sampler."""
    if meta.get("kind") != kind:
        raise CheckpointError(
            f"checkpoint samples {meta.get('kind')!r}, this run {kind!r} (replay.sampling)"
        )
