"""Plays whole episodes with fixed parameters and ε, on seeds of its own.

Called by the evaluation role, `qfleet eval` and `qfleet.evaluate`. Every episode that is started
counts, so short ones are not favoured, and none of its transitions is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qfleet.actors.policy import QFunction, explore
from qfleet.common import seeding
from qfleet.common.config import EnvConfig
from qfleet.common.envs import Environment, make_env
from qfleet.common.episode_limits import DEFAULT_EPISODE_LIMIT
from qfleet.common.types import Array
from qfleet.common.vector_envs import VectorEnvAdapter, has_native_vector, make_vector_env

_MAX_SINGLE_ENVS = 16

ShouldStop = Callable[[], bool]


class EpisodeStatistics(NamedTuple):
    """Finished episodes, in episode order."""

    returns: Array
    """float64 [n] undiscounted sums of rewards."""
    lengths: Array
    """int64 [n] env steps."""
    n_cut: int = 0
    """Of these, how many our own limit ended, not the environment."""


def evaluate(
    q_function: QFunction,
    config: EnvConfig,
    n_episodes: int,
    seed: int,
    epsilon: float = 0.0,
    max_steps_per_episode: int = DEFAULT_EPISODE_LIMIT,
) -> EpisodeStatistics:
    """`n_episodes` episodes in environments made for this call; see `Evaluator.evaluate`."""
    evaluator = Evaluator(config, epsilon, max_steps_per_episode=max_steps_per_episode)
    try:
        return evaluator.evaluate(q_function, n_episodes, seed)
    finally:
        evaluator.close()


class Evaluator:
    """Keeps its environments between evaluations; owned by one process, not thread-safe.

    The result depends on the network, `seed`, `n_episodes` and ε alone, not on earlier calls.
    CartPole plays all episodes as one vector, each sub-environment its first one; other
    environments play up to `max_envs` episodes at a time, each with a seed of its own.
    """

    def __init__(
        self,
        config: EnvConfig,
        epsilon: float = 0.0,
        *,
        max_steps_per_episode: int = DEFAULT_EPISODE_LIMIT,
        max_envs: int = _MAX_SINGLE_ENVS,
    ) -> None:
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {epsilon} (eval.epsilon)")
        if max_steps_per_episode < 1 or max_envs < 1:
            raise ValueError("max_steps_per_episode and max_envs must be at least 1")
        self._config = config
        self._epsilon = epsilon
        self._max_steps = max_steps_per_episode
        self._max_envs = max_envs
        self._vector: VectorEnvAdapter | None = None
        self._singles: list[Environment] = []
        self.steps = 0
        """Steps of all environments together so far: whoever waits sees that it goes on."""

    def evaluate(
        self,
        q_function: QFunction,
        n_episodes: int,
        seed: int,
        *,
        should_stop: ShouldStop | None = None,
    ) -> EpisodeStatistics:
        """Returns and lengths of `n_episodes` episodes, in episode order.

        `should_stop` is asked before every step; once it answers True, only the episodes that had
        ended are returned: too few, and biased to short ones.
        """
        if n_episodes < 1:
            raise ValueError(f"n_episodes must be at least 1, got {n_episodes} (eval.episodes)")
        if has_native_vector(self._config):
            return self._evaluate_vector(q_function, n_episodes, seed, should_stop)
        return self._evaluate_singles(q_function, n_episodes, seed, should_stop)

    def close(self) -> None:
        """Close all environments; a later evaluation makes new ones."""
        if self._vector is not None:
            self._vector.close()
        for env in self._singles:
            env.close()
        self._vector, self._singles = None, []

    def _evaluate_vector(
        self, q_function: QFunction, n_episodes: int, seed: int, should_stop: ShouldStop | None
    ) -> EpisodeStatistics:
        if self._vector is None or self._vector.n_envs != n_episodes:
            self.close()
            self._vector = make_vector_env(self._config, n_episodes, place="an evaluation")
        env = self._vector
        observations = env.reset(seeding.seed_int(seed, "eval.episodes"))
        rng = seeding.generator(seed, "eval.policy")
        returns = np.zeros(n_episodes, dtype=np.float64)
        lengths = np.zeros(n_episodes, dtype=np.int64)
        playing = np.ones(n_episodes, dtype=bool)
        for _ in range(self._max_steps):
            if should_stop is not None and should_stop():
                return EpisodeStatistics(returns[~playing], lengths[~playing])
            actions = explore(
                self._q_values(q_function, observations, playing),
                self._epsilon,
                rng.random((2, n_episodes)),
                env.n_actions,
            )
            result = env.step(actions)
            self.steps += 1
            returns += result.rewards * playing
            lengths += playing
            playing &= ~(result.terminated | result.truncated)
            observations = result.observations
            if not playing.any():
                break
        return EpisodeStatistics(returns, lengths, int(np.count_nonzero(playing)))

    def _q_values(self, q_function: QFunction, observations: Array, playing: Array) -> Array:
        """float32 [E, A]; of frames only those that still play, for convolutions take the time.

        States: ended ones play on unrecorded, for a constant batch gives a row constant bits.
        """
        if self._config.observation != "pixels":
            return q_function.q_values(observations)
        answers = q_function.q_values(observations[playing])
        q_values = np.zeros((len(playing), answers.shape[1]), dtype=np.float32)
        q_values[playing] = answers
        return q_values

    def _evaluate_singles(
        self, q_function: QFunction, n_episodes: int, seed: int, should_stop: ShouldStop | None
    ) -> EpisodeStatistics:
        while len(self._singles) < min(n_episodes, self._max_envs):
            self._singles.append(make_env(self._config, place="an evaluation"))
        waiting = iter(range(n_episodes))
        active = [
            _Episode.start(index, env, seed)
            for env, index in zip(self._singles, waiting, strict=False)
        ]
        finished: list[_Episode] = []
        while active:
            if should_stop is not None and should_stop():
                break
            self._step_together(q_function, active)
            still_active: list[_Episode] = []
            for episode in active:
                if not (episode.ended or episode.length >= self._max_steps):
                    still_active.append(episode)
                    continue
                finished.append(episode)
                following = next(waiting, None)
                if following is not None:
                    still_active.append(_Episode.start(following, episode.env, seed))
            active = still_active
        finished.sort(key=lambda episode: episode.index)
        return EpisodeStatistics(
            np.array([episode.episode_return for episode in finished], dtype=np.float64),
            np.array([episode.length for episode in finished], dtype=np.int64),
            sum(not episode.ended for episode in finished),
        )

    def _step_together(self, q_function: QFunction, active: list[_Episode]) -> None:
        q_values = q_function.q_values(np.stack([episode.observation for episode in active]))
        uniforms = np.stack([episode.rng.random(2) for episode in active], axis=1)  # [2, active]
        actions = explore(q_values, self._epsilon, uniforms, q_values.shape[1])
        for episode, action in zip(active, actions.tolist(), strict=True):
            episode.step(action)
            self.steps += 1


@dataclass(slots=True)
class _Episode:
    """One episode being played in a single environment, with a generator of its own."""

    index: int
    env: Environment
    rng: np.random.Generator
    observation: Array
    episode_return: float = 0.0
    length: int = 0
    ended: bool = False

    @classmethod
    def start(cls, index: int, env: Environment, seed: int) -> _Episode:
        observation, _ = env.reset(seed=seeding.seed_int(seed, "eval.episode", index))
        return cls(index, env, seeding.generator(seed, "eval.policy", index), observation)

    def step(self, action: int) -> None:
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.episode_return += float(reward)
        self.length += 1
        self.ended = bool(terminated or truncated)
