"""Means over a learner's updates: those since the last report, and its last blocks.

Kept by the learner's core; the last blocks tell what a divergence looked like.
"""

from __future__ import annotations

import collections
from typing import Any

from qfleet.common.reports import LearnerStats
from qfleet.learner.backend import Measured

_NAMES = ("loss", "q_mean", "td_error_abs_mean", "grad_norm")
_BLOCKS_KEPT = 200


class BlockStatistics:
    """Sums of what blocks measured; a report begins new ones."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(_NAMES, 0.0)
        self._n_updates = 0
        self._last = dict.fromkeys(_NAMES, 0.0)
        self._last_blocks: collections.deque[tuple[float, ...]] = collections.deque(
            maxlen=_BLOCKS_KEPT
        )
        """Learner steps and means; told when the learner has diverged."""

    def add(self, learner_steps: int, measured: Measured) -> None:
        """Count a block that ended at `learner_steps`."""
        n_updates = len(measured.losses)
        means = _means(measured)
        for name, mean in zip(_NAMES, means, strict=True):
            self._sums[name] += mean * n_updates
        self._n_updates += n_updates
        self.remember(learner_steps, measured)

    def remember(self, learner_steps: int, measured: Measured) -> None:
        """Keep a block's means among the last ones without counting it."""
        self._last_blocks.append((learner_steps, *_means(measured)))

    def report(
        self, learner_steps: int, params_version: int, target_syncs: int, *, has_diverged: bool
    ) -> LearnerStats:
        """Means since the previous report (the last ones when nothing was learned)."""
        if self._n_updates:
            self._last = {name: self._sums[name] / self._n_updates for name in _NAMES}
            self._sums = dict.fromkeys(_NAMES, 0.0)
            self._n_updates = 0
        return LearnerStats(
            learner_steps,
            params_version,
            target_syncs,
            **self._last,
            last_blocks=tuple(self._last_blocks) if has_diverged else (),
        )

    def capture(self) -> dict[str, Any]:
        """Everything but the last blocks, under the names that a checkpoint has."""
        return {
            "last_stats": dict(self._last),
            "sums": dict(self._sums),
            "updates_in_sums": self._n_updates,
        }

    def restore(self, meta: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self._last = dict(meta["last_stats"])
        self._sums = dict(meta["sums"])
        self._n_updates = meta["updates_in_sums"]


def _means(measured: Measured) -> tuple[float, ...]:
    """In the order of `_NAMES`."""
    return (
        float(measured.losses.mean()),
        float(measured.q_means.mean()),
        float(measured.td_errors_abs.mean()),
        float(measured.grad_norms.mean()),
    )
