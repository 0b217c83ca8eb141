"""The actor's core: plays E sub-environments with the newest parameters and packs transitions.

Called by the local runtime and by the Ray shell in `remote.py`. It has no Ray and no thread; its
clock only counts where the time goes.

Source: Horgan et al. 2018 (Ape-X), alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import NamedTuple

import numpy as np

from qfleet.actors.frame_trail import FrameTrail
from qfleet.actors.n_step import NStepAccumulator
from qfleet.actors.nested_captures import (
    capture_snapshot,
    get_part,
    put_part,
    restore_snapshot,
)
from qfleet.actors.plan import ActorPlan
from qfleet.actors.policy import Exploration, QFunction, select_actions
from qfleet.common import seeding
from qfleet.common.errors import (
    CheckpointError,
    EnvironmentFailedError,
    InvariantError,
    NonFiniteError,
    QfleetError,
)
from qfleet.common.pixels.stored_columns import stored_columns
from qfleet.common.stage_clock import ACTING, ENCODING, ENVIRONMENT, StageClock
from qfleet.common.td import td_errors_by_networks
from qfleet.common.types import (
    ACTION,
    Array,
    Capture,
    ChunkId,
    Columns,
    EnvironmentSpec,
    EpisodeSummary,
    ParamsSnapshot,
    TargetSyncEvent,
    TransitionChunk,
    check_columns,
)
from qfleet.common.vector_envs import StepResult, VectorEnvAdapter


class _Held(NamedTuple):
    """A snapshot and the function built from it."""

    snapshot: ParamsSnapshot
    q_function: QFunction


class Actor:
    """One slot of the fleet; owned by one process, not thread-safe.

    Every real env step opens one n-step window; completed ones wait in `pending_rows` until
    `take_chunk`. Chunks of an incarnation are numbered from 0 without gaps. Parameters never go
    back to an older version.
    """

    def __init__(
        self,
        plan: ActorPlan,
        spec: EnvironmentSpec,
        env: VectorEnvAdapter,
        build_q_function: Callable[[ParamsSnapshot], QFunction],
        *,
        run_id: str,
        slot: int,
        incarnation: int,
    ) -> None:
        self._run_id, self._slot, self._incarnation = run_id, slot, incarnation
        self._plan, self._spec, self._env = plan, spec, env
        self._build_q_function = build_q_function
        n_envs = env.n_envs
        self._accumulator = NStepAccumulator(n_envs, plan.n_step, plan.discount, spec)
        self._rng = seeding.generator(plan.seed, "actor.policy", slot)
        self.set_n_actors(plan.count)
        self._online: _Held | None = None
        self._target: _Held | None = None
        self._env_steps_at_params = 0
        self._acted_version = 0
        self._seq = 0
        self._env_steps_at_chunk = 0
        self._pending: list[Columns] = []
        self._pending_rows = 0
        self._pending_episodes: list[EpisodeSummary] = []
        self._episode_returns = np.zeros(n_envs, dtype=np.float64)
        self._episode_lengths = np.zeros(n_envs, dtype=np.int64)
        self.env_steps = 0
        """Real environment steps of this slot: reset steps do not count."""
        self.episodes = 0
        """Episodes that ended."""
        self.stale_params = 0
        """Snapshots ignored because a newer one was held."""
        self.clock = StageClock()
        """Where its own time went."""
        first = env.reset(seeding.seed_int(plan.seed, "actor.env", slot, incarnation))
        self._trail: FrameTrail | None = None
        if spec.frame_stack is not None:
            self._trail = FrameTrail(n_envs, spec.frame_stack, plan.n_step)
            self._trail.start(first)

    @property
    def n_envs(self) -> int:
        """E."""
        return self._env.n_envs

    @property
    def params_version(self) -> int | None:
        """Version of the online parameters, None before the first."""
        return None if self._online is None else self._online.snapshot.version

    @property
    def params_learner_step(self) -> int:
        """Learner step of the online parameters, 0 before the first."""
        return 0 if self._online is None else self._online.snapshot.learner_step

    @property
    def target_version(self) -> int | None:
        """Version of the last target sync taken, None before the first."""
        return None if self._target is None else self._target.snapshot.version

    @property
    def pending_rows(self) -> int:
        """Transitions that the next chunk will hold."""
        return self._pending_rows

    @property
    def open_windows(self) -> int:
        """Steps whose n-step window is not complete yet."""
        return self._accumulator.pending

    @property
    def produced(self) -> int:
        """Transitions that the accumulator has completed since the start."""
        return self._accumulator.produced

    @property
    def dropped_transitions(self) -> int:
        """Open windows given up by restores into an environment that cannot continue."""
        return self._accumulator.dropped

    def set_n_actors(self, n_actors: int) -> None:
        """Spread the ε ladder over `n_actors` actors from now on."""
        self._n_actors = n_actors
        self._exploration = Exploration(self._plan, self._slot, n_actors, self._env.n_envs)

    def set_params(self, snapshot: ParamsSnapshot) -> TargetSyncEvent | None:
        """Act with `snapshot` from the next step on; the target sync that this acknowledges.

        A version older than the held one is ignored and counted in `stale_params`; the held
        version again changes nothing.
        """
        held = self._online
        if held is not None and snapshot.version < held.snapshot.version:
            self.stale_params += 1
            return None
        if held is None or snapshot.version > held.snapshot.version:
            held = _Held(snapshot, self._build_q_function(snapshot))
            self._online = held
            self._env_steps_at_params = self.env_steps
        if not snapshot.is_target_sync or self.target_version == snapshot.version:
            return None
        self._target = held
        return TargetSyncEvent(snapshot.learner_step, snapshot.version)

    def step(self) -> None:
        """One vector step with the current parameters.

        Raises:
            QfleetError: when no parameters have arrived yet.
        """
        if self._online is None:
            raise QfleetError(f"actor {self._slot} has no parameters yet: call set_params first")
        self.clock.start()
        observations = self._env.observations
        epsilons = self._exploration.epsilons(self._fleet_env_steps())
        q_values = self._online.q_function.q_values(observations)
        actions = select_actions(q_values, epsilons, self._rng, self._spec.n_actions)
        self.clock.lap(ACTING)
        result = self._env.step(actions)
        self.clock.lap(ENVIRONMENT)
        self._acted_version = self._online.snapshot.version
        columns = self._completed(observations, actions, result)
        if columns is not None:
            self._pending.append(columns)
            self._pending_rows += len(columns[ACTION])
        self._count(result, epsilons)
        self.clock.lap(ENCODING)

    def _completed(self, observations: Array, actions: Array, result: StepResult) -> Columns | None:
        """The transitions that this step completes, frames by number."""
        if self._trail is None:
            return self._accumulator.push(observations, actions, result)
        numbers = self._trail.numbers
        return self._accumulator.push(numbers, actions, self._trail.follow(result))

    def act_steps(self, n: int) -> int:
        """Vector steps until at least `n` real env steps were taken; how many were taken."""
        start = self.env_steps
        while self.env_steps - start < n:
            self.step()
        return self.env_steps - start

    def act_episode(self) -> None:
        """Vector steps until an episode has ended; meant for a single sub-environment."""
        start = self.episodes
        while self.episodes == start:
            self.step()

    def take_chunk(self) -> TransitionChunk | None:
        """Everything completed since the last chunk; None when nothing at all happened.

        Raises:
            EnvironmentFailedError: when a value is NaN or infinite.
            NonFiniteError: when a priority is NaN or infinite.
        """
        env_steps = self.env_steps - self._env_steps_at_chunk
        if not (self._pending_rows or self._pending_episodes or env_steps):
            return None
        self.clock.start()
        columns = self._pending_columns()
        self._check_finite(columns)
        chunk = TransitionChunk(
            ChunkId(self._run_id, self._slot, self._incarnation, self._seq),
            columns,
            self._priorities(columns) if self._plan.gives_priorities else None,
            self._acted_version,
            env_steps,
            tuple(self._pending_episodes),
            None if self._trail is None else self._trail.take_run(),
        )
        self._seq += 1
        self._env_steps_at_chunk = self.env_steps
        self._pending, self._pending_rows, self._pending_episodes = [], 0, []
        self.clock.lap(ENCODING)
        return chunk

    def close(self) -> None:
        """Close the sub-environments."""
        self._env.close()

    def _fleet_env_steps(self) -> float:
        """The learner's count, plus what the fleet has played since if all play at our speed."""
        assert self._online is not None, "step() checks"
        own = self.env_steps - self._env_steps_at_params
        return self._online.snapshot.env_steps + own * self._n_actors

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

    def _priorities(self, columns: Columns) -> Array:
        """float64 [rows] |δ| by the networks held now; the learner revises it after sampling."""
        if not len(columns[ACTION]):
            return np.empty(0, dtype=np.float64)
        assert self._online is not None, "rows exist only after a step"
        online = self._online.q_function
        held = self._target if self._plan.has_target_syncs else None
        target = online if held is None else held.q_function
        if self._trail is not None:
            columns = self._trail.unfold(columns)
        errors = td_errors_by_networks(
            columns, online.q_values, target.q_values, double_q=self._plan.double_q
        )
        if not np.isfinite(errors).all():
            raise NonFiniteError(
                f"actor {self._slot} got a TD error that is NaN or infinite with parameters "
                f"version {self.params_version}; try a smaller learner.learning_rate"
            )
        return np.abs(errors)

    def capture(self) -> Capture:
        """All state, parameters included; the environment's where `env.supports_capture`."""
        meta = {
            "slot": self._slot,
            "incarnation": self._incarnation,
            "seq": self._seq,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "stale_params": self.stale_params,
            "env_steps_at_params": self._env_steps_at_params,
            "env_steps_at_chunk": self._env_steps_at_chunk,
            "acted_version": self._acted_version,
            "rng": self._rng.bit_generator.state,
            "pending_episodes": [list(astuple(episode)) for episode in self._pending_episodes],
        }
        capture = Capture(
            meta,
            {
                "episode_returns": self._episode_returns.copy(),
                "episode_lengths": self._episode_lengths.copy(),
            },
        )
        put_part(capture, "pending", Capture({}, self._pending_columns()))
        put_part(capture, "n_step", self._accumulator.capture())
        if self._trail is not None:
            put_part(capture, "trail", self._trail.capture())
        if self._env.supports_capture:
            put_part(capture, "env", self._env.capture())
        for name, held in (("online", self._online), ("target", self._target)):
            if held is not None:
                put_part(capture, name, capture_snapshot(held.snapshot))
        return capture

    def restore(self, capture: Capture) -> None:
        """The inverse of `capture`; a new incarnation numbers its chunks from 0.

        Where the environment cannot be restored, episodes start anew and the open n-step windows
        are dropped (`dropped_transitions`).

        Raises:
            CheckpointError: when it was captured from another slot, n_step or E.
        """
        meta = capture.meta
        if meta["slot"] != self._slot:
            raise CheckpointError(f"captured from actor {meta['slot']}, this is {self._slot}")
        self._accumulator.restore(get_part(capture, "n_step"))
        self._seq = meta["seq"] if meta["incarnation"] == self._incarnation else 0
        self.env_steps, self.episodes = meta["env_steps"], meta["episodes"]
        self.stale_params = meta["stale_params"]
        self._env_steps_at_chunk = meta["env_steps_at_chunk"]
        self._acted_version = meta["acted_version"]
        self._rng.bit_generator.state = meta["rng"]
        self._pending_episodes = [EpisodeSummary(*fields) for fields in meta["pending_episodes"]]
        columns = get_part(capture, "pending").arrays
        self._pending_rows = len(columns[ACTION])
        self._pending = [columns] if self._pending_rows else []
        self._episode_returns = capture.arrays["episode_returns"].copy()
        self._episode_lengths = capture.arrays["episode_lengths"].copy()
        if self._trail is not None:
            self._trail.restore(get_part(capture, "trail"))
            if meta["incarnation"] != self._incarnation:
                self._trail.send_again()
        self._restore_params(capture)
        self._env_steps_at_params = meta["env_steps_at_params"]
        self._restore_env(capture)

    def _restore_params(self, capture: Capture) -> None:
        self._online = self._target = None
        for name in ("target", "online"):  # oldest first: versions only grow
            if name in capture.meta:
                self.set_params(restore_snapshot(get_part(capture, name)))

    def _restore_env(self, capture: Capture) -> None:
        if "env" in capture.meta and self._env.supports_capture:
            self._env.restore(get_part(capture, "env"))
            return
        # The step count in the seed keeps a repeated incarnation from replaying its first episodes.
        first = self._env.reset(
            seeding.seed_int(
                self._plan.seed, "actor.env", self._slot, self._incarnation, self.env_steps
            )
        )
        if self._trail is not None:
            self._trail.start(first)
        self._accumulator.drop_pending()
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0

    def check_valid(self) -> None:
        """Raise `InvariantError` when counters, windows or columns contradict one another."""
        self._accumulator.check_valid()
        self._env.check_valid()
        check_columns(self._pending_columns(), stored_columns(self._spec), self._pending_rows)
        if self._trail is not None:
            self._trail.check_valid()
        if self.env_steps != self._accumulator.opened:
            raise InvariantError(
                f"{self.env_steps} env steps, but {self._accumulator.opened} windows were opened"
            )
        if self._env_steps_at_chunk > self.env_steps or self._pending_rows > self.produced:
            raise InvariantError("a chunk holds more than was played")
