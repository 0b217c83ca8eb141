"""One face for all vector environments: the true successor, no reset steps, copies only.

Called by the actor and the evaluator. Gymnasium's vector environments end episodes in two ways:
in NEXT_STEP the step after an end ignores the action and returns the reset observation; in
SAME_STEP the reset observation is returned at once and the final one is in `infos`. The adapter
turns both into `StepResult`, so nothing above it knows which one plays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from qfleet.common.atari import LIFE_LOST, AtariVector, has_vector
from qfleet.common.config import EnvConfig
from qfleet.common.envs import Environment, make_env
from qfleet.common.errors import CheckpointError, ConfigError, InvariantError, QfleetError
from qfleet.common.optional_games import register_games
from qfleet.common.pixels.frame_view import FrameView
from qfleet.common.sub_env_captures import capture_sub_env, has_method, restore_sub_env
from qfleet.common.types import Array, Capture

VectorEnvironment = gymnasium.vector.VectorEnv[Any, Any, Any]

_CARTPOLE_IDS = frozenset({"CartPole-v0", "CartPole-v1"})


class StepResult(NamedTuple):
    """One vector step; all arrays are the caller's to keep."""

    next_observations: Array
    """`[E, *O]` the true successors: the final observation where an episode ended."""
    rewards: Array
    """float [E]."""
    terminated: Array
    """bool [E]."""
    truncated: Array
    """bool [E] also true where the time limit and the end coincide."""
    is_transition: Array
    """bool [E]: False for a reset step, which must be neither stored nor counted."""
    observations: Array
    """`[E, *O]` to choose the next actions from."""
    life_lost: Array | None = None
    """bool [E]: Atari, where a game goes on with a life less; None where games have no lives."""


class VectorEnvAdapter:
    """Steps E sub-environments as one; owned by one process, not thread-safe.

    `capture`/`restore` are exact for CartPole's own vector environment, and for a `SyncVectorEnv`
    whose every sub-environment offers, on itself or any wrapper:

        capture() -> dict          a JSON-able state, without the generator
        restore(state: dict)       the inverse

    The adapter itself adds what these cannot see: the time limit's count and `np_random`'s state.
    """

    def __init__(self, env: VectorEnvironment, frames: FrameView | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ConfigError(
                f"a vector environment must reset in NEXT_STEP or SAME_STEP mode, got {mode}"
            )
        self._env = env
        self._frames = frames
        self._resets_next_step = mode == AutoresetMode.NEXT_STEP
        self._observations: Array | None = None
        self._awaits_reset = np.zeros(env.num_envs, dtype=bool)

    @property
    def n_envs(self) -> int:
        """E."""
        return int(self._env.num_envs)

    @property
    def n_actions(self) -> int:
        """A."""
        space = self._env.single_action_space
        assert isinstance(space, Discrete), "make_env lets only discrete actions pass"
        return int(space.n)

    @property
    def observations(self) -> Array:
        """`[E, *O]` to choose the next actions from, as the last reset or step gave them."""
        if self._observations is None:
            raise QfleetError("the vector environment has not been reset yet: call reset(seed)")
        return self._observations

    def reset(self, seed: int) -> Array:
        """Start an episode everywhere; every sub-environment draws its own from `seed`."""
        raw, _ = self._env.reset(seed=seed)
        self._awaits_reset = np.zeros(self.n_envs, dtype=bool)
        self._observations = self._observed(raw)
        if self._frames is not None:
            self._observations = self._frames.stack.started(self._observations)
        return self._observations

    def step(self, actions: Array) -> StepResult:
        """Play `actions` int [E] (ignored where a sub-environment is due to reset)."""
        raw, rewards, terminated, truncated, infos = self._env.step(actions)
        observations = self._observed(raw)
        rewards = np.array(rewards)
        terminated, truncated = np.array(terminated), np.array(truncated)
        ended = terminated | truncated
        is_transition = ~self._awaits_reset
        next_observations = observations
        if not self._resets_next_step:
            next_observations = _with_final(observations, ended, infos)
        if self._frames is not None:
            next_observations, observations = self._stacked(next_observations, observations, ended)
        if self._resets_next_step:
            self._awaits_reset = ended
        self._observations = observations
        return StepResult(
            next_observations,
            rewards,
            terminated,
            truncated,
            is_transition,
            observations,
            infos.get(LIFE_LOST),
        )

    def _observed(self, raw: Any) -> Array:
        """A copy of what it shows: float32 [E, O], planes, or single frames uint8 [E, H, S]."""
        if self._frames is None:
            return np.array(raw, dtype=self._env.single_observation_space.dtype, order="C")
        if self._frames.renderer is None:
            return np.array(raw, dtype=np.uint8, order="C")
        assert isinstance(self._env, CartPoleVectorEnv), "the one vector that holds its states"
        return self._frames.renderer.frames(np.asarray(self._env.state, dtype=np.float64).T)

    def _stacked(self, successors: Array, shown: Array, ended: Array) -> tuple[Array, Array]:
        """True successors, and what the next actions are chosen from, as stacks."""
        assert self._frames is not None, "asked only with frames"
        stack = self._frames.stack
        stacks = stack.followed(self.observations, successors, self._awaits_reset)
        if shown is successors:
            return stacks, stacks
        begun = stacks.copy()
        begun[ended] = stack.started(shown[ended])
        return stacks, begun

    def close(self) -> None:
        """Close all sub-environments."""
        self._env.close()

    @property
    def supports_capture(self) -> bool:
        """Whether `capture` and `restore` work, exactly."""
        if isinstance(self._env, CartPoleVectorEnv):
            return True
        return isinstance(self._env, SyncVectorEnv) and all(
            has_method(env, "capture") and has_method(env, "restore") for env in self._env.envs
        )

    def capture(self) -> Capture:
        """The state of all sub-environments and of the adapter.

        Raises:
            QfleetError: when `supports_capture` is false or nothing was reset yet.
        """
        arrays = {"observations": self.observations.copy(), "awaits_reset": self._awaits_reset}
        if isinstance(self._env, CartPoleVectorEnv):
            assert self._env.state is not None, "reset() has been called"
            arrays["state"] = np.array(self._env.state)
            arrays["steps"] = self._env.steps.copy()
            return Capture({"rng": self._env.np_random.bit_generator.state}, arrays)
        envs = self._captured_envs()
        return Capture({"sub_envs": [capture_sub_env(env) for env in envs]}, arrays)

    def restore(self, capture: Capture) -> None:
        """The inverse of `capture`, also into a new adapter of as many sub-environments.

        Raises:
            CheckpointError: when the capture has another number of sub-environments.
        """
        rows = len(capture.arrays["awaits_reset"])
        if rows != self.n_envs:
            raise CheckpointError(
                f"the checkpoint holds {rows} sub-environments, this actor has {self.n_envs} "
                "(actors.envs_per_actor)"
            )
        self._awaits_reset = capture.arrays["awaits_reset"].copy()
        self._observations = capture.arrays["observations"].copy()
        if isinstance(self._env, CartPoleVectorEnv):
            self._env.state = capture.arrays["state"].copy()  # type: ignore[assignment]  # annotated None
            self._env.steps = capture.arrays["steps"].copy()
            self._env.prev_done = self._awaits_reset.copy()
            self._env.np_random.bit_generator.state = capture.meta["rng"]
            return
        envs = self._captured_envs()
        self._env.reset()  # wrappers refuse to step before their first reset
        for env, state in zip(envs, capture.meta["sub_envs"], strict=True):
            restore_sub_env(env, state)
        if isinstance(self._env, SyncVectorEnv):
            self._env._autoreset_envs = self._awaits_reset.copy()

    def _captured_envs(self) -> list[Environment]:
        if not (isinstance(self._env, SyncVectorEnv) and self.supports_capture):
            raise QfleetError(
                "this environment cannot be captured: give it capture() -> dict and "
                "restore(dict), or ask supports_capture first"
            )
        return list(self._env.envs)

    def check_valid(self) -> None:
        """Raise `InvariantError` unless the adapter agrees with its environment."""
        if self._observations is not None and len(self._observations) != self.n_envs:
            raise InvariantError(f"{len(self._observations)} observations of {self.n_envs}")
        if self._awaits_reset.any() and not self._resets_next_step:
            raise InvariantError("a SAME_STEP environment never awaits a reset step")
        if isinstance(self._env, CartPoleVectorEnv) and not np.array_equal(
            self._awaits_reset, self._env.prev_done
        ):
            raise InvariantError("adapter and environment disagree on who is due to reset")


def has_native_vector(config: EnvConfig) -> bool:
    """Whether Gymnasium's vectorized CartPole plays this config."""
    draws_itself = config.observation == "pixels" and config.renderer != "fast"
    is_plain = config.factory is None and not config.kwargs and not draws_itself
    return config.id in _CARTPOLE_IDS and is_plain


def make_vector_env(
    config: EnvConfig,
    n_envs: int,
    *,
    asynchronous: bool = False,
    place: str = "",
    max_episode_steps: int | None = None,
) -> VectorEnvAdapter:
    """E sub-environments: CartPole's and Atari's own vectors, a loop of `make_env` for the rest.

    `asynchronous` plays each sub-environment in a process of its own; errors name `place`;
    episodes end by truncation after `max_episode_steps` at the latest.

    Raises:
        ConfigError: as `make_env`, and when the sub-environments are not alike.
    """
    frames = FrameView.of(config)
    if has_native_vector(config) and not asynchronous:
        return VectorEnvAdapter(_native_vector(config, n_envs, max_episode_steps), frames)
    if has_vector(config) and not asynchronous:
        register_games(config.id)
        return VectorEnvAdapter(AtariVector(config, n_envs, max_episode_steps), frames)
    makers: list[Callable[[], Environment]] = [
        partial(
            make_env,
            config,
            place=f"{place}, sub-environment {i}".lstrip(", "),
            keeps_info=False,
            stacked=False,
            max_episode_steps=max_episode_steps,
        )
        for i in range(n_envs)
    ]
    # The adapter copies, so the environment need not.
    vector = AsyncVectorEnv if asynchronous else SyncVectorEnv
    try:
        env = vector(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except RuntimeError as error:  # the spaces of two sub-environments differ
        raise ConfigError(f"the environments made of one configuration differ: {error}") from error
    return VectorEnvAdapter(env, None if frames is None else frames._replace(renderer=None))


def _native_vector(
    config: EnvConfig, n_envs: int, max_episode_steps: int | None
) -> VectorEnvironment:
    own = gymnasium.spec(config.id).max_episode_steps
    if max_episode_steps is None or (own is not None and own <= max_episode_steps):
        return gymnasium.make_vec(config.id, num_envs=n_envs)
    return gymnasium.make_vec(config.id, num_envs=n_envs, max_episode_steps=max_episode_steps)


def _with_final(observations: Array, ended: Array, infos: dict[str, Any]) -> Array:
    if not ended.any():
        return observations
    delivered = infos.get("_final_obs", np.zeros(len(ended), dtype=bool))
    if not delivered[ended].all():
        raise QfleetError("a SAME_STEP environment ended an episode without infos['final_obs']")
    successors = observations.copy()
    for index in np.flatnonzero(ended):
        successors[index] = infos["final_obs"][index]
    return successors
