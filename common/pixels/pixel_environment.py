"""One environment that observes frames: its own images, its rendering, or drawn from its state.

Put around an environment by `make_env` where `env.observation` is `pixels`, beneath the checks of
what it answers, so that a renderer's error is told as the environment's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qfleet.common.config import EnvConfig
from qfleet.common.errors import ConfigError
from qfleet.common.pixels.fast_renderers import fast_renderer, single_frame
from qfleet.common.pixels.frame_stack import FrameStack
from qfleet.common.pixels.gray_frames import gray, shrunk
from qfleet.common.pixels.observed_part import observed_part
from qfleet.common.types import Array

Environment = gymnasium.Env[Any, Any]

RGB_ARRAY = "rgb_array"
_LARGEST_NON_IMAGE_EXTENT = 16
"""A uint8 array with two extents above this is taken for an image."""
_GRAY, _RGB = 1, 3


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether observations are pictures."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return sum(extent > _LARGEST_NON_IMAGE_EXTENT for extent in space.shape) >= 2


def with_frames(
    env: Environment,
    config: EnvConfig,
    render_mode: str | None,
    make_again: Callable[[str], Environment],
) -> Environment:
    """`env`, observing single gray frames uint8 [H, S]: of S × S pixels what is observed.

    Args:
        env: As made for `render_mode`.
        config: Says where frames come from, and their size.
        render_mode: What the caller wants to see of it.
        make_again: Makes it for another render mode.

    Raises:
        ConfigError: when there is nothing to make frames of, saying what to choose instead.
    """
    shape, size = config.frame_shape, config.frame_size
    observed = partial(observed_part, config)
    if config.renderer == "fast":
        renderer = fast_renderer(config)
        return _Frames(env, shape, lambda _: single_frame(renderer, env))
    if is_image(env.observation_space):
        to_gray = _to_gray(env.observation_space, config)
        return _Frames(env, shape, lambda image: observed(shrunk(to_gray(image), size)))
    if env.render_mode != RGB_ARRAY:
        _check_can_render(env, config, render_mode)
        env.close()
        env = make_again(RGB_ARRAY)
    return _Frames(env, shape, lambda _: observed(shrunk(gray(_picture(env)), size)))


def _to_gray(space: spaces.Space[Any], config: EnvConfig) -> Callable[[Array], Array]:
    """How pictures of `space` become gray: [H, W], or one or three channels first or last."""
    shape = space.shape or ()
    size = config.frame_size
    channels_last = len(shape) == 3 and shape[2] in (_GRAY, _RGB)
    channels_first = len(shape) == 3 and shape[0] in (_GRAY, _RGB) and not channels_last
    if not (len(shape) == 2 or channels_last or channels_first):
        raise ConfigError(
            f"{_name(config)} observes images {list(shape)}; they must be gray or RGB, [H, W], "
            "[H, W, 3] or [3, H, W]: reduce them in a wrapper given by env.factory"
        )
    sides = shape[1:] if channels_first else shape[:2]
    if min(sides) < size:
        raise ConfigError(
            f"{_name(config)} observes images of {sides[0]} × {sides[1]} pixels, which cannot be "
            f"enlarged to {size} (env.frame_size): set it to {min(sides)} or less"
        )
    return partial(_gray_of, channels_first)


def _gray_of(channels_first: bool, image: Any) -> Array:
    picture = np.asarray(image)
    if picture.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, got {picture.dtype}")
    if channels_first:
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim == 2:
        return picture
    return gray(picture) if picture.shape[2] == _RGB else picture[:, :, 0]


def _check_can_render(env: Environment, config: EnvConfig, render_mode: str | None) -> None:
    modes = list(env.metadata.get("render_modes", []))
    if RGB_ARRAY not in modes:
        raise ConfigError(
            f"{_name(config)} cannot be rendered as {RGB_ARRAY} (its render_modes are {modes}), "
            "so there are no frames to observe: set env.observation state"
        )
    if render_mode is not None:
        raise ConfigError(
            f"{_name(config)} draws its own observations, so it cannot be shown as "
            f"{render_mode} at the same time: record a video (--video), or set env.renderer fast"
        )


def _picture(env: Environment) -> Array:
    """uint8 [H, W, 3] of the environment as it is now."""
    picture: Any = env.render()
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
        raise ValueError(f"render() must return uint8 [H, W, 3], got {type(picture).__name__}")
    return picture


def _name(config: EnvConfig) -> str:
    return config.factory or config.id


class _Frames(gymnasium.Wrapper[Array, Any, Any, Any]):
    """Replaces each observation by `frame(observation)`, uint8 of that shape."""

    def __init__(
        self, env: Environment, shape: tuple[int, int], frame: Callable[[Any], Array]
    ) -> None:
        super().__init__(env)
        self._frame = frame
        self.observation_space = spaces.Box(0, 255, shape, dtype=np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._frame(observation), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._frame(observation), reward, terminated, truncated, info


class StackedEnvironment(gymnasium.Wrapper[Array, Any, Any, Any]):
    """One environment whose observations are its newest K frames, uint8 [K, S, S]."""

    def __init__(self, env: Environment, depth: int) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        assert shape is not None, "frames have one"
        self._stack = FrameStack(depth)
        self._frames = np.empty((1, depth, *shape), dtype=np.uint8)
        self.observation_space = spaces.Box(0, 255, (depth, *shape), dtype=np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode: K times its first frame."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._frames = self._stack.started(frame[None])
        return self._frames[0], info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Play and take the new frame in."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._frames = self._stack.followed(self._frames, frame[None], np.zeros(1, dtype=bool))
        return self._frames[0], reward, terminated, truncated, info
