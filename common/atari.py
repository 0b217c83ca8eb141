"""Atari games as DQN plays them: four frames a step, the brighter of the last two, 84×84 gray.

Called by `envs.py` and `vector_envs.py` for ids of the namespace `ALE` that are observed as pixels.
A single environment is Gymnasium's own preprocessing, many are ale-py's vector environment in C++:
their frames are equal pixel for pixel. Both give single frames and whole games, unclipped: stacks
are ours, for ale-py fills a stack with zeros after a reset; clipping and lives are the actor's
(`actors/recorder.py`), so that scores stay real.

Source: Mnih et al. 2015 (preprocessing); Machado et al. 2018 (sticky actions).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing, TransformObservation

from qfleet.common.config import EnvConfig
from qfleet.common.optional_games import bare_id, namespace
from qfleet.common.pixels.observed_part import observed_part
from qfleet.common.types import Array

FRAME_SKIP = 4
MAX_NOOPS = 30
"""A game begins with 0 to 30 frames of doing nothing."""
LIFE_LOST = "life_lost"
"""In a vector's `infos`: bool [E], where a game goes on with a life less."""
_MOST_SEED = 2**31 - 1
VECTOR_KWARGS = frozenset({"repeat_action_probability", "full_action_space", "frameskip"})
"""What ale-py's vector environment takes of its single one's arguments."""


def is_atari(config: EnvConfig) -> bool:
    """Whether this module makes its environments."""
    is_ale = config.factory is None and namespace(config.id) == "ALE"
    return is_ale and config.observation == "pixels"


def has_vector(config: EnvConfig) -> bool:
    """Whether ale-py's vector environment plays it."""
    return is_atari(config) and VECTOR_KWARGS.issuperset(config.kwargs)


def single_frames_kwargs(config: EnvConfig) -> dict[str, Any]:
    """For `gymnasium.make`: the preprocessing skips frames by itself."""
    return {**config.kwargs, "frameskip": 1}


def preprocessed(env: gymnasium.Env[Any, Any], config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """`env`, made with `single_frames_kwargs`, observing frames uint8 [H, S]."""
    skip = frame_skip(config)
    whole = AtariPreprocessing(
        env, noop_max=MAX_NOOPS, frame_skip=skip, screen_size=config.frame_size
    )
    space = gymnasium.spaces.Box(0, 255, config.frame_shape, dtype=np.uint8)
    wrapped = TransformObservation(whole, partial(observed_part, config), space)
    fps = env.metadata.get("render_fps") or 60
    wrapped.metadata = {**env.metadata, "render_fps": fps / skip}
    return wrapped


def frame_skip(config: EnvConfig) -> int:
    """Frames of a step."""
    return int(config.kwargs.get("frameskip", FRAME_SKIP))


def sticky_probability(config: EnvConfig) -> float:
    """With which the last action is played again: what the id registers unless a kwarg says."""
    registered = gymnasium.spec(bare_id(config.id)).kwargs["repeat_action_probability"]
    return float(config.kwargs.get("repeat_action_probability", registered))


def play_note(config: EnvConfig) -> str | None:
    """How the games are played, for the summary; None for others."""
    if not is_atari(config):
        return None
    sticky = sticky_probability(config)
    return (
        f"{frame_skip(config)} frames a step, "
        f"{f'sticky actions ({sticky:g})' if sticky else 'no sticky actions'}, "
        f"0 to {MAX_NOOPS} no-ops at the start"
        f"{', lost lives end episodes for the learner' if config.episodic_life else ''}"
    )


class AtariVector(gymnasium.vector.VectorWrapper):
    """ale-py's vector environment with single frames uint8 [E, H, S], resetting in SAME_STEP."""

    def __init__(self, config: EnvConfig, n_envs: int, max_episode_steps: int | None) -> None:
        from ale_py import AtariVectorEnv

        registered = gymnasium.spec(bare_id(config.id)).kwargs
        skip = frame_skip(config)
        most_frames = registered["max_num_frames_per_episode"]
        if max_episode_steps is not None:
            most_frames = min(most_frames, max_episode_steps * skip)
        env = AtariVectorEnv(
            registered["game"],
            n_envs,
            num_threads=1,
            autoreset_mode=AutoresetMode.SAME_STEP,
            max_num_frames_per_episode=most_frames,
            repeat_action_probability=sticky_probability(config),
            full_action_space=bool(config.kwargs.get("full_action_space", False)),
            img_height=config.frame_size,
            img_width=config.frame_size,
            stack_num=1,
            frameskip=skip,
            noop_max=MAX_NOOPS,
            reward_clipping=False,
            use_fire_reset=False,
        )
        super().__init__(env)
        self._config = config
        self._lives = np.zeros(n_envs, dtype=np.int64)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a game everywhere; its seeds are small enough for C++."""
        small = None if seed is None else int(seed) % (_MOST_SEED - self.num_envs)
        frames, infos = self.env.reset(seed=small, options=options)
        self._lives = np.array(infos["lives"])
        return observed_part(self._config, frames[:, 0]), infos

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Play; `infos` has final frames where games ended, as Gymnasium's own vectors have."""
        frames, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = terminated | truncated
        lives = np.array(infos["lives"])
        told: dict[str, Any] = {LIFE_LOST: (lives < self._lives) & ~ended}
        self._lives = lives
        if ended.any():
            final = observed_part(self._config, infos["final_obs"][:, 0])
            told.update(final_obs=final, _final_obs=ended)
        observed = observed_part(self._config, frames[:, 0])
        return observed, rewards, terminated, truncated, told
