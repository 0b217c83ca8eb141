"""What happens when an actor or a shard dies or nothing moves; the asynchronous loop does it.

Pure: it is told of deaths and of the time, so its rules are tested without Ray. A slot is filled
again under the next incarnation, after a wait that doubles while nothing gets better; a slot that
keeps dying is given up, and too few living actors end the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qfleet.common.errors import RoleLostError, WaitTimeoutError

MAX_DEATHS_WITHOUT_PROGRESS = 5
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
STALL_TIMEOUT_S = 600.0
"""Longer than any single environment step or block of updates should take."""


@dataclass
class _Slot:
    incarnation: int
    deaths_without_progress: int = 0
    learner_steps_at_death: int = 0
    restart_at_s: float | None = None
    given_up: bool = False


@dataclass
class ActorSupervisor:
    """Incarnations, waits and budgets of all actor slots."""

    min_count: int
    first_incarnation: int = 0
    """Of a slot that nobody has filled before."""
    slots: dict[int, _Slot] = field(default_factory=dict)
    last_reason: str = ""
    _retired: dict[int, int] = field(default_factory=dict)
    """Slots that were given back, each with its newest incarnation."""

    def add(self, slot: int) -> int:
        """A slot that is filled now; returns its incarnation, above all that it ever had."""
        before = self._retired.pop(slot, self.first_incarnation - 1)
        self.slots[slot] = _Slot(before + 1)
        return before + 1

    def retire(self, slot: int) -> None:
        """Nobody fills the slot any more."""
        self._retired[slot] = self.slots.pop(slot).incarnation

    def died(self, slot: int, reason: str, env_steps: int, learner_steps: int, now_s: float) -> str:
        """Note a death; returns what will be done, in words.

        An incarnation was of use when it has played and the learner has learned since the death
        before: what is played and lost again and again, before anything is learned, is no progress.

        Args:
            slot: Whose.
            reason: In words.
            env_steps: Of that incarnation.
            learner_steps: Of the run so far.
            now_s: On the monotonic clock.

        Raises:
            RoleLostError: when fewer than `min_count` actors are alive or to be restarted.
        """
        state = self.slots[slot]
        progressed = env_steps > 0 and learner_steps > state.learner_steps_at_death
        state.learner_steps_at_death = max(state.learner_steps_at_death, learner_steps)
        state.deaths_without_progress = 0 if progressed else state.deaths_without_progress + 1
        self.last_reason = f"actor {slot}: {reason}"
        if state.deaths_without_progress >= MAX_DEATHS_WITHOUT_PROGRESS:
            state.given_up = True
            self._check_enough()
            return f"actor {slot} died ({reason}); given up after {MAX_DEATHS_WITHOUT_PROGRESS}"
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**state.deaths_without_progress)
        state.restart_at_s = now_s + wait_s
        return f"actor {slot} died ({reason}); a new one takes its place in {wait_s:.1f} s"

    def _check_enough(self) -> None:
        left = sum(not state.given_up for state in self.slots.values())
        if left < self.min_count:
            raise RoleLostError(
                f"{left} actors are left, actors.min_count is {self.min_count}: an actor died "
                f"{MAX_DEATHS_WITHOUT_PROGRESS} times without anything learned in between; the "
                f"last reason was {self.last_reason}"
            )

    def due(
        self, now_s: float, may_fill: Callable[[int], bool] = lambda slot: True
    ) -> dict[int, int]:
        """Slots to fill now, each with its next incarnation; those that may not be wait."""
        filled = {}
        for slot, state in self.slots.items():
            is_due = state.restart_at_s is not None and state.restart_at_s <= now_s
            if is_due and may_fill(slot):
                state.restart_at_s = None
                state.incarnation += 1
                filled[slot] = state.incarnation
        return filled


@dataclass
class ShardSupervisor:
    """How often each replay shard was lost in vain: before the one in its place had served."""

    max_in_vain: int
    _in_vain: dict[int, int] = field(default_factory=dict)

    def died(self, shard: int, reason: str, now_s: float) -> float:
        """Note a loss; returns when to begin anew, on the monotonic clock.

        Raises:
            RoleLostError: when it was in vain too often.
        """
        self._in_vain[shard] = in_vain = self._in_vain.get(shard, 0) + 1
        if in_vain > self.max_in_vain:
            raise RoleLostError(f"{reason} (run.max_role_restarts = {self.max_in_vain})")
        # The first time at once: the others wait for nothing, but its actors wait for it.
        wait_s = 0.0 if in_vain == 1 else FIRST_WAIT_S * 2.0**in_vain
        return now_s + min(LONGEST_WAIT_S, wait_s)

    def served(self, shard: int) -> None:
        """It answers the learner again."""
        self._in_vain.pop(shard, None)


@dataclass
class StallWatch:
    """Notices a run in which every role answers and none gets anywhere, such as a hung env step."""

    _progress: tuple[int, int] | None = None
    _moved_at_s: float = 0.0

    def observe(
        self, env_steps: int, learner_steps: int, now_s: float, limiters: Sequence[str] = ()
    ) -> None:
        """Take in the steps that all actors have played and the learner has made.

        `limiters` says for each shard what its rate limiter lets through.

        Raises:
            WaitTimeoutError: when neither has changed for `STALL_TIMEOUT_S`.
        """
        if self._progress != (env_steps, learner_steps):
            self._progress, self._moved_at_s = (env_steps, learner_steps), now_s
        elif now_s - self._moved_at_s > STALL_TIMEOUT_S:
            raise WaitTimeoutError(
                f"driver waited {STALL_TIMEOUT_S:.0f} s for any actor's next env step after "
                f"{env_steps} or the learner's next update after {learner_steps}: an environment "
                f"may hang{''.join(f'; {limiter}' for limiter in limiters)}"
            )
