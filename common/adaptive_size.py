"""How large a message should be, decided from what sending it costs.

Used by the actors' shell for chunks and by the learner's for requests. Pure: it is told times and
reads no clock.
"""

from __future__ import annotations


class AdaptiveSize:
    """A size between `least` and `most` that doubles or halves.

    It doubles after `grow_after` observations in a row whose cost was above `grow_above` of their
    budget, and halves after `shrink_after` in a row below `shrink_below`: small messages keep data
    fresh, so a larger one must pay. With `least` = `most` it never changes.
    """

    def __init__(
        self,
        least: int,
        most: int,
        *,
        grow_above: float,
        shrink_below: float,
        grow_after: int,
        shrink_after: int,
    ) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"sizes must be at least 1 and in order, got {least} and {most}")
        if not 0.0 <= shrink_below < grow_above / 2:
            # Halving doubles the share; it must not ask for doubling at once.
            raise ValueError(f"shrink_below {shrink_below} must be below half of {grow_above}")
        self._least, self._most = least, most
        self._grow_above, self._shrink_below = grow_above, shrink_below
        self._grow_after, self._shrink_after = grow_after, shrink_after
        self._costly = self._cheap = 0
        self.size = least
        """The size to use now."""

    def observe(self, cost_s: float, budget_s: float) -> None:
        """One message of the present size cost `cost_s` out of `budget_s`."""
        is_costly = cost_s > self._grow_above * budget_s
        is_cheap = cost_s < self._shrink_below * budget_s
        self._costly = self._costly + 1 if is_costly else 0
        self._cheap = self._cheap + 1 if is_cheap else 0
        if self._costly >= self._grow_after:
            self._resize(min(self._most, 2 * self.size))
        elif self._cheap >= self._shrink_after:
            self._resize(max(self._least, self.size // 2))

    def _resize(self, size: int) -> None:
        self.size = size
        self._costly = self._cheap = 0
