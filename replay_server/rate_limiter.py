"""Who may go on, actors or learner: decisions from counts alone; all of qfleet's are in this file.

Asynchronous runs: `RatioLimiter`, asked by a replay shard with its counters; whoever has to wait
asks again after the other side moved. Lockstep: `LearningDebt`, asked by the round loop; it follows
the same ratio, or `EpisodeLimiter`, the course's schedule.

Source: Cassirer et al. 2021 (Reverb), `SampleToInsertRatio`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qfleet.common.errors import ConfigError
from qfleet.common.types import ReplayStats

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


def minimum_limiter_tolerance_samples(
    samples_per_insert: float, chunk_transitions: int, samples_per_request: int
) -> int:
    """The smallest whole tolerance with which one side can always proceed.

    Both wait when error > tolerance − spi·chunk and error < request − tolerance; no number is
    between these two exactly when 2·tolerance ≥ spi·chunk + request. The sum is exact, because one
    bit too little would be a deadlock; the product is the float that the limiter compares.

    Differs: Reverb's items come one by one; these come in batches.
    """
    return math.ceil((Fraction(samples_per_insert * chunk_transitions) + samples_per_request) / 2)


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

    def explain(self, episodes: int, sampled: int) -> str:
        """One line for the message of a wait that timed out."""
        return (
            f"{episodes} episodes allow {self.samples_owed(episodes)} samples "
            f"({self.updates_per_episode} updates of {self.batch_size} each), {sampled} were drawn"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRule:
    """What the rounds of a lockstep run pay for."""

    min_size: int
    """Transitions over all shards before learning starts."""
    draws_per_block: int
    samples_per_insert: float | None
    episodes: EpisodeLimiter | None
    """Instead of the ratio."""
    free_blocks: int
    """Blocks per round when there is neither."""


@dataclass
class LearningDebt:
    """How much learning the playing so far pays for.

    Counts from when the replay first held enough: warm-up inserts owe no updates, and neither does
    a refill after a resume without the replay's contents, so there is never a burst.
    """

    inserted: int | None = None
    """Counters at that moment; None while the replay holds too little."""
    sampled: int = 0
    episodes: int = 0
    unfinished_blocks: int = 0
    """What the update budget cut off the newest round: a run that goes on learns this first."""

    def blocks_to_finish(self, rule: LearningRule, stats: Sequence[ReplayStats]) -> int:
        """What is left of the newest round; nothing when the replay came back without contents."""
        return self.unfinished_blocks if sum(s.size for s in stats) >= rule.min_size else 0

    def blocks_due(self, rule: LearningRule, stats: Sequence[ReplayStats]) -> int:
        """How many blocks this round learns, by the counters of all shards."""
        inserted, sampled = sum(s.inserted for s in stats), sum(s.sampled for s in stats)
        episodes = sum(s.episodes for s in stats)
        if sum(s.size for s in stats) < rule.min_size:
            self.inserted = None
            return 0
        if self.inserted is None:
            self.inserted, self.sampled = inserted, sampled
            # The episode that filled the replay is the first that owes updates.
            self.episodes = episodes - 1 if rule.episodes is not None else episodes
        drawn = sampled - self.sampled
        if rule.episodes is not None:
            owed: float = rule.episodes.samples_owed(episodes - self.episodes) - drawn
        elif rule.samples_per_insert is not None:
            owed = (inserted - self.inserted) * rule.samples_per_insert - drawn
        else:
            return rule.free_blocks
        return max(0, int(owed // rule.draws_per_block))

    def explain(self, rule: LearningRule, stats: Sequence[ReplayStats]) -> str:
        """One line for the message of a wait that timed out."""
        size = f"replay holds {sum(s.size for s in stats)} of {rule.min_size} needed"
        if self.inserted is None:
            return f"{size}; nothing is owed yet"
        drawn = sum(s.sampled for s in stats) - self.sampled
        if rule.episodes is not None:
            played = sum(s.episodes for s in stats) - self.episodes
            return f"{size}; {rule.episodes.explain(played, drawn)}"
        if rule.samples_per_insert is None:
            return f"{size}; no ratio is kept"
        inserted = sum(s.inserted for s in stats) - self.inserted
        return (
            f"{size}; {inserted} inserts since then pay for "
            f"{inserted * rule.samples_per_insert:g} samples, {drawn} were drawn"
        )
