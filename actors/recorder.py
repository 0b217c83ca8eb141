"""What an actor has played: n-step transitions, frames and episodes until a chunk takes them.

Called by the actor's core after every vector step.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import NamedTuple

import numpy as np

from qfleet.actors.frame_trail import FrameTrail
from qfleet.actors.n_step import NStepAccumulator
from qfleet.actors.nested_captures import get_part, put_part
from qfleet.actors.plan import ActorPlan
from qfleet.common.arrays_check import check_columns
from qfleet.common.errors import EnvironmentFailedError, InvariantError
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.pixels.stored_columns import stored_columns
from qfleet.common.types import ACTION, Array, Capture, Columns, EnvironmentSpec, EpisodeSummary
from qfleet.common.vector_envs import StepResult


class Played(NamedTuple):
    """What goes into one chunk."""

    columns: Columns
    first_transition: int
    env_steps: int
    episodes: tuple[EpisodeSummary, ...]
    frames: FrameRun | None


class Recorder:
    """Of the E sub-environments of one slot.

    Every real env step opens one n-step window; completed ones wait until `take`.
    """

    def __init__(self, plan: ActorPlan, spec: EnvironmentSpec, slot: int, first: Array) -> None:
        """Episodes begin everywhere with the observations `first` [E, ...]."""
        self._plan, self._spec, self._slot = plan, spec, slot
        n_envs = len(first)
        self.windows = NStepAccumulator(n_envs, plan.n_step, plan.discount, spec)
        self._trail: FrameTrail | None = None
        if spec.frame_stack is not None:
            self._trail = FrameTrail(n_envs, spec.frame_stack, plan.n_step)
            self._trail.start(first)
        self._env_steps_at_chunk = 0
        self._taken_rows = 0
        self._pending: list[Columns] = []
        self.pending_rows = 0
        """Transitions that the next chunk will hold."""
        self._pending_episodes: list[EpisodeSummary] = []
        self._episode_returns = np.zeros(n_envs, dtype=np.float64)
        self._episode_lengths = np.zeros(n_envs, dtype=np.int64)
        self.env_steps = 0
        """Real environment steps: reset steps do not count."""
        self.episodes = 0
        """Episodes that ended."""

    @property
    def numbered(self) -> int:
        """Transitions of this incarnation, taken or pending."""
        return self._taken_rows + self.pending_rows

    def record(
        self, observations: Array, actions: Array, result: StepResult, epsilons: Array
    ) -> None:
        """One vector step from `observations`, played with `epsilons` float64 [E]."""
        columns = self._completed(observations, actions, result)
        if columns is not None:
            self._pending.append(columns)
            self.pending_rows += len(columns[ACTION])
        self._count(result, epsilons)

    def _completed(self, observations: Array, actions: Array, result: StepResult) -> Columns | None:
        """The transitions that this step completes, frames by number."""
        if self._trail is None:
            return self.windows.push(observations, actions, self._as_learned(result))
        numbers = self._trail.numbers
        return self.windows.push(numbers, actions, self._as_learned(self._trail.follow(result)))

    def _as_learned(self, result: StepResult) -> StepResult:
        """What the learner is told of a step; scores and episodes are the game's own.

        Rewards are clipped, then scaled, and a lost life may end an episode.
        """
        clip, scale = self._plan.max_abs_reward, self._plan.reward_scale
        if clip is not None:
            result = result._replace(rewards=np.clip(result.rewards, -clip, clip))
        if scale != 1.0:
            result = result._replace(rewards=result.rewards * scale)
        if self._plan.env.episodic_life and result.life_lost is not None:
            result = result._replace(terminated=result.terminated | result.life_lost)
        return result

    def _count(self, result: StepResult, epsilons: Array) -> None:
        self.env_steps += int(np.count_nonzero(result.is_transition))
        # A reset step's reward is 0 in Gymnasium, but that is its promise, not ours.
        self._episode_returns += result.rewards * result.is_transition
        self._episode_lengths += result.is_transition
        ended = np.flatnonzero(result.terminated | result.truncated)
        for index in ended.tolist():
            self._pending_episodes.append(
                EpisodeSummary(
                    self._slot,
                    index,
                    float(self._episode_returns[index]),
                    int(self._episode_lengths[index]),
                    float(epsilons[index]),
                    bool(result.terminated[index]),
                )
            )
        if len(ended):
            self.episodes += len(ended)
            self._episode_returns[ended] = 0.0
            self._episode_lengths[ended] = 0

    def pending(self) -> Columns | None:
        """The transitions of the next chunk; None when nothing at all happened since the last one.

        Raises:
            EnvironmentFailedError: when a value is NaN or infinite.
        """
        env_steps = self.env_steps - self._env_steps_at_chunk
        if not (self.pending_rows or self._pending_episodes or env_steps):
            return None
        columns = self._pending_columns()
        self._check_finite(columns)
        return columns

    def unfolded(self, columns: Columns) -> Columns:
        """Pending transitions with observations in place of frames' numbers."""
        return columns if self._trail is None else self._trail.unfold(columns)

    def take(self, columns: Columns) -> Played:
        """Hand out `columns`, which `pending` gave, with all that belongs to them."""
        played = Played(
            columns,
            self._taken_rows,
            self.env_steps - self._env_steps_at_chunk,
            tuple(self._pending_episodes),
            None if self._trail is None else self._trail.take_run(),
        )
        self._env_steps_at_chunk = self.env_steps
        self._taken_rows += self.pending_rows
        self._pending, self.pending_rows, self._pending_episodes = [], 0, []
        return played

    def _pending_columns(self) -> Columns:
        if not self._pending:
            return {
                column.name: np.empty((0, *column.shape), dtype=column.dtype)
                for column in stored_columns(self._spec)
            }
        return {
            name: np.concatenate([part[name] for part in self._pending])
            for name in self._pending[0]
        }

    def _check_finite(self, columns: Columns) -> None:
        """What enters the replay is finite.

        Each value was looked at where the environment returned it; their discounted sum in float32
        may still be more than that can hold.
        """
        for name, column in columns.items():
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                raise EnvironmentFailedError(
                    f"{self._spec.env_id} failed in actor {self._slot} before env step "
                    f"{self.env_steps}: {name} of a transition is NaN or beyond float32; scale the "
                    "rewards and observations in a wrapper given by env.factory"
                )

    def begin_anew(self, first: Array) -> None:
        """Episodes begin everywhere with `first`; open windows are given up and counted."""
        if self._trail is not None:
            self._trail.start(first)
        self.windows.drop_pending()
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0

    def capture(self) -> Capture:
        """All state."""
        capture = Capture(
            {
                "env_steps": self.env_steps,
                "episodes": self.episodes,
                "env_steps_at_chunk": self._env_steps_at_chunk,
                "taken_rows": self._taken_rows,
                "pending_episodes": [list(astuple(episode)) for episode in self._pending_episodes],
            },
            {
                "episode_returns": self._episode_returns.copy(),
                "episode_lengths": self._episode_lengths.copy(),
            },
        )
        put_part(capture, "pending", Capture({}, self._pending_columns()))
        put_part(capture, "n_step", self.windows.capture())
        if self._trail is not None:
            put_part(capture, "trail", self._trail.capture())
        return capture

    def restore(self, capture: Capture, *, same_incarnation: bool) -> None:
        """The inverse of `capture`; the shard knows no frame of another incarnation.

        Raises:
            CheckpointError: when it was captured with another n_step or E.
        """
        meta = capture.meta
        self.windows.restore(get_part(capture, "n_step"))
        self.env_steps, self.episodes = meta["env_steps"], meta["episodes"]
        self._env_steps_at_chunk = meta["env_steps_at_chunk"]
        self._taken_rows = meta["taken_rows"] if same_incarnation else 0
        self._pending_episodes = [EpisodeSummary(*fields) for fields in meta["pending_episodes"]]
        columns = get_part(capture, "pending").arrays
        self.pending_rows = len(columns[ACTION])
        self._pending = [columns] if self.pending_rows else []
        self._episode_returns = capture.arrays["episode_returns"].copy()
        self._episode_lengths = capture.arrays["episode_lengths"].copy()
        if self._trail is not None:
            self._trail.restore(get_part(capture, "trail"))
            if not same_incarnation:
                self._trail.send_again()

    def check_valid(self) -> None:
        """Raise `InvariantError` when counters, windows or columns contradict one another."""
        self.windows.check_valid()
        check_columns(self._pending_columns(), stored_columns(self._spec), self.pending_rows)
        if self._trail is not None:
            self._trail.check_valid()
        if self.env_steps != self.windows.opened:
            raise InvariantError(
                f"{self.env_steps} env steps, but {self.windows.opened} windows were opened"
            )
        too_many = self.pending_rows > self.windows.produced
        if self._env_steps_at_chunk > self.env_steps or too_many:
            raise InvariantError("a chunk holds more than was played")
