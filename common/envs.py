"""Builds one environment from its config, with flat float32 observations and actions 0…A−1.

Called by the vector environments, the evaluator, the player and the driver, which measures the
`EnvironmentSpec` once. Everything that a user can get wrong about an environment ends here, as a
`ConfigError` that names the key and the remedy.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction, TransformObservation

from qfleet.common.config import EnvConfig
from qfleet.common.errors import ConfigError
from qfleet.common.types import Array, EnvironmentSpec

Environment = gymnasium.Env[Any, Any]

OBSERVATION_DTYPE = "<f4"
_LARGEST_NON_IMAGE_EXTENT = 16
"""A uint8 array with two extents above this is taken for an image."""
_EXTRA_OF_PACKAGE = {"box2d": "box2d", "swig": "box2d"}
"""Words in gymnasium's complaint about a missing package, and our extra that installs it."""


def make_env(config: EnvConfig, render_mode: str | None = None) -> Environment:
    """The environment with our preprocessing: `float32 [O]` observations, `Discrete(A)` actions.

    Each observation is a fresh array, so an environment that reuses its buffer is safe to store.
    The working directory is importable, for `module:Id` and for factories.

    Raises:
        ConfigError: when the environment cannot be made or its spaces are not supported.
    """
    _make_working_directory_importable()
    _hide_pygame(render_mode)
    env = (
        _make_registered(config, render_mode)
        if config.factory is None
        else _make_from_factory(config.factory, config, render_mode)
    )
    return _with_flat_observation(_with_actions_from_zero(env, config), config)


def describe_environment(config: EnvConfig) -> EnvironmentSpec:
    """What the other roles must know; makes one environment and closes it.

    Raises:
        ConfigError: as `make_env`.
    """
    env = make_env(config)
    try:
        registered = env.unwrapped.spec if env.spec is None else env.spec
        observation_space, action_space = env.observation_space, env.action_space
        assert isinstance(action_space, spaces.Discrete), "make_env returned another action space"
        threshold = registered.reward_threshold if registered is not None else None
        return EnvironmentSpec(
            env_id=_name(config),
            observation_shape=tuple(int(n) for n in observation_space.shape or ()),
            observation_dtype=OBSERVATION_DTYPE,
            n_actions=int(action_space.n),
            reward_threshold=None if threshold is None else float(threshold),
            max_episode_steps=registered.max_episode_steps if registered is not None else None,
        )
    finally:
        env.close()


def env_id_suggestions(env_id: str, limit: int = 3) -> list[str]:
    """Registered ids that resemble `env_id`, most alike first; `[]` when none does."""
    by_lower_case = {known.lower(): known for known in gymnasium.registry}
    wanted = env_id.rpartition(":")[2].lower()
    matches = difflib.get_close_matches(wanted, by_lower_case, n=limit, cutoff=0.6)
    return [by_lower_case[match] for match in matches]


def _name(config: EnvConfig) -> str:
    return config.factory or config.id


def _key(config: EnvConfig) -> str:
    return f"env.factory={config.factory!r}" if config.factory else f"env.id={config.id!r}"


def _make_working_directory_importable() -> None:
    """Append it, so that a user's `common.py` or `random.py` shadows nothing installed."""
    working_directory = os.getcwd()
    if working_directory not in sys.path and "" not in sys.path:
        sys.path.append(working_directory)


def _hide_pygame(render_mode: str | None) -> None:
    """No banner; and no window system is wanted unless a human watches."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if render_mode != "human":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def _make_registered(config: EnvConfig, render_mode: str | None) -> Environment:
    # The passive checker warns of conventions that the preprocessing repairs anyway.
    kwargs: dict[str, Any] = {"disable_env_checker": True, **config.kwargs}
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        return gymnasium.make(config.id, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        suggestions = env_id_suggestions(config.id)
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
        raise ConfigError(
            f"{_key(config)} is not registered with Gymnasium{hint} {error}"
        ) from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(_missing_package(config, error)) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_key(config)} needs a module that cannot be imported: {error} Install it, or start "
            "qfleet in the folder that holds it (ray.ship sends it to other hosts)."
        ) from error
    except TypeError as error:
        raise _refused_kwargs(config, error) from error


def _missing_package(config: EnvConfig, error: Exception) -> str:
    complaint = str(error)
    for word, extra in _EXTRA_OF_PACKAGE.items():
        if word in complaint.lower():
            return f"{_key(config)} needs an optional package: pip install 'qfleet[{extra}]'"
    return f"{_key(config)} needs an optional package: {complaint}"


def _refused_kwargs(config: EnvConfig, error: TypeError) -> Exception:
    """A ConfigError when the keywords are at fault, else the environment's own error."""
    if "keyword argument" in str(error) or "positional argument" in str(error):
        return ConfigError(f"env.kwargs={config.kwargs} do not fit {_key(config)}: {error}")
    return error


def _make_from_factory(path: str, config: EnvConfig, render_mode: str | None) -> Environment:
    function = _import_factory(path)
    try:
        env = function(**{**config.kwargs, "render_mode": render_mode})
    except TypeError as error:
        raise _refused_kwargs(config, error) from error
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"{_key(config)} must return a gymnasium.Env, got {type(env).__name__}")
    return env


def _import_factory(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"env.factory={path!r}: {error}. Start qfleet in the folder that holds the module, or "
            "install it (ray.ship sends it to other hosts)."
        ) from error
    except AttributeError as error:
        raise ConfigError(
            f"env.factory={path!r}: module {module_name} has no function {function_name}"
        ) from error
    if not callable(function):
        raise ConfigError(f"env.factory={path!r} names a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]  # any callable a user's module holds


def _with_actions_from_zero(env: Environment, config: EnvConfig) -> Environment:
    space = env.action_space
    if not isinstance(space, spaces.Discrete):
        raise ConfigError(
            f"{_key(config)} has the action space {space}; Q-learning needs Discrete actions: "
            "choose a discrete variant, or discretize it in a wrapper given by env.factory"
        )
    if space.start == 0:
        return env
    shift = partial(_add, int(space.start))
    return TransformAction(env, shift, spaces.Discrete(int(space.n)))


def _add(start: int, action: Any) -> int:
    return int(action) + start


def _with_flat_observation(env: Environment, config: EnvConfig) -> Environment:
    space = env.observation_space
    if _holds_image(space):
        raise ConfigError(
            f"{_key(config)} observes images ({space}); pixels are not supported yet: choose an "
            "environment with a state vector, or reduce the image in a wrapper given by env.factory"
        )
    flat: spaces.Space[Any]
    try:
        flat = spaces.utils.flatten_space(space)
    except NotImplementedError:
        flat = space
    if not isinstance(flat, spaces.Box):
        raise ConfigError(
            f"{_key(config)} has the observation space {space}, which has no flat form of fixed "
            "length: convert it in a wrapper given by env.factory"
        )
    with np.errstate(over="ignore"):  # float64 bounds such as 1.8e308 become infinite
        low, high = flat.low.astype(np.float32), flat.high.astype(np.float32)
    func = _flat_box if isinstance(space, spaces.Box) else partial(_flat_any, space)
    return TransformObservation(env, func, spaces.Box(low, high, dtype=np.float32))


def _holds_image(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return any(_holds_image(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return any(_holds_image(part) for part in space.spaces)
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return sum(extent > _LARGEST_NON_IMAGE_EXTENT for extent in space.shape) >= 2


def _flat_box(observation: Any) -> Array:
    # np.array copies: the environment may go on writing to the array that it returned.
    return np.array(observation, dtype=np.float32).reshape(-1)


def _flat_any(space: spaces.Space[Any], observation: Any) -> Array:
    return np.array(spaces.utils.flatten(space, observation), dtype=np.float32).reshape(-1)
