"""Environments whose frames can be drawn straight from their states.

A renderer for another one is a file of its own beside `cartpole_frames.py`, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np

from qfleet.common.config import EnvConfig
from qfleet.common.errors import ConfigError
from qfleet.common.pixels.cartpole_frames import CartPoleFrames
from qfleet.common.pixels.observed_part import observed_part
from qfleet.common.types import Array


class StateRenderer(Protocol):
    """Draws frames from states."""

    def frames(self, states: Array) -> Array:
        """uint8 [E, H, S] for `states` float64 [E, n] as `env.unwrapped.state` holds them."""
        ...


FAST_RENDERERS: dict[str, Callable[[int], StateRenderer]] = {
    "CartPole-v0": CartPoleFrames,
    "CartPole-v1": CartPoleFrames,
}
"""By environment id; each is given the frames' size in pixels."""


def fast_renderer(config: EnvConfig) -> StateRenderer:
    """The renderer of the configured environment.

    Raises:
        ConfigError: when there is none.
    """
    make = None if config.factory is not None else FAST_RENDERERS.get(config.id)
    if make is None:
        raise ConfigError(
            f"env.renderer=fast: {config.factory or config.id} has no fast renderer, only "
            f"{', '.join(FAST_RENDERERS)} have; set env.renderer gymnasium"
        )
    return _ObservedFrames(make(config.frame_size), config)


class _ObservedFrames:
    """Of the whole frames that a renderer draws, what is observed."""

    def __init__(self, whole: StateRenderer, config: EnvConfig) -> None:
        self._whole, self._config = whole, config

    def frames(self, states: Array) -> Array:
        """See `StateRenderer`."""
        return observed_part(self._config, self._whole.frames(states))


def single_frame(renderer: StateRenderer, env: gymnasium.Env[Any, Any]) -> Array:
    """uint8 [H, S] of one environment as it is now."""
    state: Any = env.unwrapped.state  # type: ignore[attr-defined]  # those listed above have one
    frame: Array = renderer.frames(np.asarray(state, dtype=np.float64)[None])[0]
    return frame
