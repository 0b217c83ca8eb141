"""How much of a run's budgets is used, and which one is spent; called by the session."""

from __future__ import annotations

from dataclasses import dataclass

from qfleet.session.counters import Counters
from qfleet.settings.config import RunConfig


@dataclass(frozen=True)
class Budgets:
    """The limits of `run.max_*` beside the counters."""

    limits: RunConfig
    counters: Counters

    def _used_and_limit(self) -> dict[str, tuple[float, float | None]]:
        counters, run = self.counters, self.limits
        return {
            "max_env_steps": (counters.env_steps, run.max_env_steps),
            "max_learner_steps": (counters.learner_steps, run.max_learner_steps),
            "max_episodes": (counters.totals.episodes, run.max_episodes),
            "max_wall_s": (counters.elapsed_s, run.max_wall_s),
        }

    def fraction(self) -> float | None:
        """Used part of the budget nearest to its end; None without a budget."""
        pairs = self._used_and_limit().values()
        return max((used / limit for used, limit in pairs if limit is not None), default=None)

    def in_force(self) -> dict[str, float]:
        """The limits there are, by name."""
        limits = {name: limit for name, (_, limit) in self._used_and_limit().items()}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def spent(self) -> str | None:
        """The name of the first budget that is spent, if any."""
        for name, (used, limit) in self._used_and_limit().items():
            if limit is not None and used >= limit:
                return name
        return None

    def blocks_left(self, updates_per_block: int) -> int | None:
        """Blocks until the update budget, the last one whole; None without one."""
        limit = self.limits.max_learner_steps
        if limit is None:
            return None
        return max(0, -(-(limit - self.counters.learner_steps) // updates_per_block))
