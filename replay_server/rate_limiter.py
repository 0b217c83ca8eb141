"""Who may go on, actors or learner: decisions from counts alone, nothing is kept here.

The replay shard asks with its counters; whoever has to wait asks again after the other side moved.

Source: Cassirer et al. 2021 (Reverb), `SampleToInsertRatio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qfleet.common.config_auto import minimum_limiter_tolerance_samples
from qfleet.common.errors import ConfigError

UNLIMITED_CREDITS = 2**31 - 1
"""Credits of a limiter that never blocks inserts."""

TOLERANCE_KEY = "replay.limiter_tolerance_samples"


@dataclass(frozen=True, slots=True)
class RatioLimiter:
    """Keeps samples drawn close to `samples_per_insert` × transitions inserted.

    With error = (inserted − min_size)·spi − sampled, a draw is allowed while the error stays at
    least −tolerance, an insert while it stays at most +tolerance. The first `min_size` inserts
    are free (learning has not started), so a chunk that crosses `min_size` may leave an error of
    up to spi·(chunk − 1) whatever the tolerance. `samples_per_insert` None: no ratio is kept.
    """

    samples_per_insert: float | None
    min_size: int
    tolerance_samples: float

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ConfigError(
                f"min_size must be at least 1, got {self.min_size} (replay.min_size_to_sample)"
            )
        spi = self.samples_per_insert
        if spi is not None and not (math.isfinite(spi) and spi > 0):
            raise ConfigError(
                f"samples_per_insert must be above 0 or null, got {spi} (replay.samples_per_insert)"
            )
        check_window(self, 1, 1)

    def _error(self, inserted: int, sampled: int) -> float:
        """How many samples the learner is behind (positive) or ahead (negative)."""
        # Both sides compare this same float, so that rounding cannot make both of them wait.
        return (inserted - self.min_size) * (self.samples_per_insert or 0.0) - sampled

    def can_sample(self, size: int, inserted: int, sampled: int, n: int) -> bool:
        """Whether n draws may follow, with `size` items held."""
        if size < self.min_size:
            return False
        if self.samples_per_insert is None:
            return True
        return self._error(inserted, sampled) - n >= -self.tolerance_samples

    def can_insert(self, inserted: int, sampled: int, n: int) -> bool:
        """Whether a chunk of n transitions may follow."""
        if self.samples_per_insert is None or inserted < self.min_size:
            return True
        error = self._error(inserted, sampled)
        return error + self.samples_per_insert * n <= self.tolerance_samples

    def credits(self, inserted: int, sampled: int) -> int:
        """How many more transitions may follow, before the learner draws again."""
        if self.samples_per_insert is None:
            return UNLIMITED_CREDITS
        room = self.tolerance_samples - self._error(inserted, sampled)
        n = max(0, math.floor(room / self.samples_per_insert))
        while n > 0 and not self.can_insert(inserted, sampled, n):
            n -= 1  # the quotient was rounded up
        return min(n, UNLIMITED_CREDITS)

    def explain(self, size: int, inserted: int, sampled: int) -> str:
        """One line for the message of a wait that timed out."""
        if self.samples_per_insert is None:
            return f"replay holds {size} of {self.min_size} needed; no ratio is kept"
        return (
            f"replay holds {size} of {self.min_size} needed; inserted {inserted}, "
            f"sampled {sampled}, error {self._error(inserted, sampled):g} samples in "
            f"±{self.tolerance_samples:g} at {self.samples_per_insert:g} samples per insert"
        )


def check_window(limiter: RatioLimiter, chunk_transitions: int, samples_per_request: int) -> None:
    """Refuse a window in which actors and learner could wait for each other for ever.

    Args:
        limiter: what is checked.
        chunk_transitions: transitions of the largest chunk that asks to be inserted.
        samples_per_request: draws of the largest request to one shard.

    Raises:
        ConfigError: (a ValueError) with the smallest tolerance that works.
    """
    if limiter.samples_per_insert is None:
        return
    needed = minimum_limiter_tolerance_samples(
        limiter.samples_per_insert, chunk_transitions, samples_per_request
    )
    if not limiter.tolerance_samples >= needed:  # written so that NaN is refused too
        raise ConfigError(
            f"tolerance must be at least {needed} samples for chunks of {chunk_transitions} and "
            f"requests of {samples_per_request}, got {limiter.tolerance_samples} "
            f"({TOLERANCE_KEY}; `auto` takes a fitting one)"
        )


@dataclass(frozen=True, slots=True)
class EpisodeLimiter:
    """The course's schedule: after every episode exactly so many updates, then the next episode."""

    updates_per_episode: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.updates_per_episode < 1 or self.batch_size < 1:
            raise ConfigError(
                f"updates and batch must be at least 1, got {self.updates_per_episode} and "
                f"{self.batch_size} (learner.updates_per_episode, learner.batch_size)"
            )

    def samples_owed(self, episodes: int) -> int:
        """Samples that belong to so many finished episodes."""
        return episodes * self.updates_per_episode * self.batch_size

    def can_sample(self, episodes: int, sampled: int, n: int) -> bool:
        """Whether n draws may follow: updates are left for the episodes played."""
        return sampled + n <= self.samples_owed(episodes)

    def can_insert(self, episodes: int, sampled: int) -> bool:
        """Whether the next episode may be played: all updates were made."""
        return sampled >= self.samples_owed(episodes)

    def explain(self, episodes: int, sampled: int) -> str:
        """One line for the message of a wait that timed out."""
        return (
            f"{episodes} episodes allow {self.samples_owed(episodes)} samples "
            f"({self.updates_per_episode} updates of {self.batch_size} each), {sampled} were drawn"
        )
