"""The actor's core: plays E sub-environments with the newest parameters and packs transitions.

Called by the local runtime and by the Ray shell in `remote.py`. It has no Ray and no thread; its
clock only counts where the time goes.

Source: Horgan et al. 2018 (Ape-X), alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qfleet.actors.held_params import HeldParams
from qfleet.actors.nested_captures import get_part, put_part
from qfleet.actors.plan import ActorPlan
from qfleet.actors.policy import Exploration, select_actions
from qfleet.actors.recorder import Recorder
from qfleet.common import seeding
from qfleet.common.errors import CheckpointError, NonFiniteError, QfleetError
from qfleet.common.network_plan import n_layer_noise
from qfleet.common.q_functions import NetworkFunction
from qfleet.common.stage_clock import ACTING, ENCODING, ENVIRONMENT, StageClock
from qfleet.common.td import TdRule, td_errors_by_networks
from qfleet.common.types import (
    ACTION,
    Array,
    Capture,
    ChunkId,
    Columns,
    EnvironmentSpec,
    ParamsSnapshot,
    TargetSyncEvent,
    TransitionChunk,
)
from qfleet.common.vector_envs import VectorEnvAdapter


class Actor:
    """One slot of the fleet; owned by one process, not thread-safe.

    Every real env step opens one n-step window; completed ones wait until `take_chunk`. Chunks of
    an incarnation are numbered from 0 without gaps.
    """

    def __init__(
        self,
        plan: ActorPlan,
        spec: EnvironmentSpec,
        env: VectorEnvAdapter,
        build_q_function: Callable[[ParamsSnapshot], NetworkFunction],
        *,
        run_id: str,
        slot: int,
        incarnation: int,
        ladder: tuple[int, int] | None = None,
    ) -> None:
        """`ladder`: see `set_ladder`; None: the slot's own place among `plan.count`."""
        self._run_id, self._slot, self._incarnation = run_id, slot, incarnation
        self._plan, self._spec, self._env = plan, spec, env
        self._params = HeldParams(slot, spec, build_q_function)
        self._n_noise = n_layer_noise(plan.network, spec)
        self._rng = seeding.generator(plan.seed, "actor.policy", slot)
        self.set_ladder(*(ladder or (slot, plan.count)))
        self._env_steps_at_params = 0
        self._acted_version = self._acted_target_version = 0
        self._seq = 0
        self.clock = StageClock()
        """Where its own time went."""
        first = env.reset(seeding.seed_int(plan.seed, "actor.env", slot, incarnation))
        self._recorder = Recorder(plan, spec, slot, first)

    @property
    def n_envs(self) -> int:
        """E."""
        return self._env.n_envs

    @property
    def env_steps(self) -> int:
        """Real environment steps of this slot: reset steps do not count."""
        return self._recorder.env_steps

    @property
    def episodes(self) -> int:
        """Episodes that ended."""
        return self._recorder.episodes

    @property
    def params_version(self) -> int | None:
        """Version of the online parameters, None before the first."""
        return None if self._params.online is None else self._params.online.version

    @property
    def params_learner_step(self) -> int:
        """Learner step of the online parameters, 0 before the first."""
        return 0 if self._params.online is None else self._params.online.learner_step

    @property
    def target_version(self) -> int | None:
        """Version of the last target sync taken, None before the first."""
        return None if self._params.target is None else self._params.target.version

    @property
    def stale_params(self) -> int:
        """Snapshots ignored because a newer one was held."""
        return self._params.stale

    @property
    def pending_rows(self) -> int:
        """Transitions that the next chunk will hold."""
        return self._recorder.pending_rows

    @property
    def open_windows(self) -> int:
        """Steps whose n-step window is not complete yet."""
        return self._recorder.windows.pending

    @property
    def produced(self) -> int:
        """Transitions that this incarnation has numbered."""
        return self._recorder.numbered

    @property
    def dropped_transitions(self) -> int:
        """Open windows given up by restores into an environment that cannot continue."""
        return self._recorder.windows.dropped

    def set_ladder(self, place: int, n_actors: int) -> None:
        """Play with the ε of that place in the ladder of `n_actors` actors from now on."""
        self.ladder = place, n_actors
        self._exploration = Exploration(self._plan, place, n_actors, self._env.n_envs)

    def set_params(self, snapshot: ParamsSnapshot) -> TargetSyncEvent | None:
        """Act with `snapshot` from the next step on; the target sync that is taken with it.

        A version older than the held one is ignored and counted in `stale_params`, unless it is a
        newer target: that is taken as the target alone. The held version again changes nothing.

        Raises:
            NonFiniteError: when an array holds NaN or infinity; nothing was changed.
            InvariantError: when an array is not this network's; nothing was changed.
        """
        before = self._params.online
        event = self._params.take(snapshot)
        if self._params.online is not before:
            self._env_steps_at_params = self.env_steps
        return event

    def step(self) -> None:
        """One vector step with the current parameters.

        Raises:
            QfleetError: when no parameters have arrived yet.
        """
        online = self._params.online
        if online is None:
            raise QfleetError(f"actor {self._slot} has no parameters yet: call set_params first")
        self.clock.start()
        observations = self._env.observations
        fleet_env_steps = self._fleet_env_steps(online)
        epsilons = self._exploration.epsilons(fleet_env_steps, self.episodes)
        q_values = self._params.online_function.q_values(observations, self._draw_noise())
        actions = select_actions(q_values, epsilons, self._rng, self._spec.n_actions)
        self.clock.lap(ACTING)
        result = self._env.step(actions)
        self.clock.lap(ENVIRONMENT)
        self._acted_version = online.version
        self._acted_target_version = self.target_version or 0
        self._recorder.record(observations, actions, result, epsilons)
        self.clock.lap(ENCODING)

    def _draw_noise(self) -> Array | None:
        """Of a network with noisy layers, for each sub-environment and anew in each step."""
        if not self._n_noise:
            return None
        return self._rng.standard_normal((self.n_envs, self._n_noise), dtype=np.float32)

    def _fleet_env_steps(self, online: ParamsSnapshot) -> float:
        """The learner's count, plus what the fleet has played since if all play at our speed."""
        own = self.env_steps - self._env_steps_at_params
        return online.env_steps + own * self.ladder[1]

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
        self.clock.start()
        columns = self._recorder.pending()
        if columns is None:
            return None
        priorities = self._priorities(columns) if self._plan.gives_priorities else None
        played = self._recorder.take(columns)
        chunk = TransitionChunk(
            ChunkId(self._run_id, self._slot, self._incarnation, self._seq),
            played.columns,
            priorities,
            self._acted_version,
            played.env_steps,
            played.episodes,
            played.frames,
            self._acted_target_version,
            played.first_transition,
        )
        self._seq += 1
        self.clock.lap(ENCODING)
        return chunk

    def close(self) -> None:
        """Close the sub-environments."""
        self._env.close()

    def _priorities(self, columns: Columns) -> Array:
        """float64 [rows] |δ| by the networks held now; the learner revises it after sampling."""
        if not len(columns[ACTION]):
            return np.empty(0, dtype=np.float64)
        target = self._params.target_function(self._plan.has_target_syncs)
        errors = td_errors_by_networks(
            self._recorder.unfolded(columns),
            self._params.online_function,
            target,
            TdRule(self._plan.network, self._plan.double_q, self._plan.munchausen),
        )
        if not np.isfinite(errors).all():
            raise NonFiniteError(
                f"actor {self._slot} got a TD error that is NaN or infinite with parameters "
                f"version {self.params_version}; try a smaller learner.learning_rate"
            )
        return np.abs(errors)

    def capture(self) -> Capture:
        """All state, parameters included; the environment's where `env.supports_capture`."""
        capture = self._recorder.capture()
        capture.meta.update(
            slot=self._slot,
            incarnation=self._incarnation,
            seq=self._seq,
            stale_params=self.stale_params,
            env_steps_at_params=self._env_steps_at_params,
            acted_version=self._acted_version,
            acted_target_version=self._acted_target_version,
            rng=self._rng.bit_generator.state,
        )
        if self._env.supports_capture:
            put_part(capture, "env", self._env.capture())
        self._params.capture_into(capture)
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
        same_incarnation = meta["incarnation"] == self._incarnation
        self._recorder.restore(capture, same_incarnation=same_incarnation)
        self._seq = meta["seq"] if same_incarnation else 0
        self._params.stale = meta["stale_params"]
        self._acted_version = meta["acted_version"]
        self._acted_target_version = meta["acted_target_version"]
        self._rng.bit_generator.state = meta["rng"]
        self._params.restore(capture)
        self._env_steps_at_params = meta["env_steps_at_params"]
        self._restore_env(capture)

    def _restore_env(self, capture: Capture) -> None:
        if "env" in capture.meta and self._env.supports_capture:
            self._env.restore(get_part(capture, "env"))
            return
        # The step count in the seed keeps a repeated incarnation from replaying its first episodes.
        name = "actor.env", self._slot, self._incarnation, self.env_steps
        first = self._env.reset(seeding.seed_int(self._plan.seed, *name))
        self._recorder.begin_anew(first)

    def check_valid(self) -> None:
        """Raise `InvariantError` when counters, windows or columns contradict one another."""
        self._recorder.check_valid()
        self._env.check_valid()
