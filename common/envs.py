"""Builds one environment from its config, with flat float32 observations and actions 0…A−1.

Called by the vector environments, the evaluator, the player and the driver, which measures the
`EnvironmentSpec` once. Everything that a user can get wrong about an environment ends here, as a
`ConfigError` that names the key and the remedy.
"""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces

from qfleet.common.atari import (
    VECTOR_KWARGS,
    has_vector,
    is_atari,
    preprocessed,
    single_frames_kwargs,
)
from qfleet.common.config import EnvConfig
from qfleet.common.environment_checks import CheckedEnvironment, probe
from qfleet.common.episode_limits import own_limit, with_limit
from qfleet.common.errors import ConfigError, EnvironmentFailedError
from qfleet.common.observation_form import FrameForm, ObservationForm, PlaneForm
from qfleet.common.optional_games import bare_id, register_games
from qfleet.common.pixels.pixel_environment import StackedEnvironment, is_image, with_frames
from qfleet.common.types import EnvironmentSpec
from qfleet.common.user_code import search_working_directory
from qfleet.common.user_errors import is_from_signal, user_error

Environment = gymnasium.Env[Any, Any]

_EXTRA_OF_PACKAGE = {"box2d": "box2d", "swig": "box2d"}
"""Words in gymnasium's complaint about a missing package, and our extra that installs it."""


def make_env(
    config: EnvConfig,
    render_mode: str | None = None,
    *,
    place: str = "",
    keeps_info: bool = True,
    stacked: bool = True,
    max_episode_steps: int | None = None,
) -> Environment:
    """The environment with our preprocessing: `Discrete(A)` actions, `float32 [O]` observations.

    With `env.observation` pixels they are stacks of frames uint8 [K, H, S], or single frames
    uint8 [H, S] where `stacked` is false.

    Each observation is a fresh array, so an environment that reuses its buffer is safe to store.
    The working directory is importable, for `module:Id` and for factories. What the environment
    does wrong is an `EnvironmentFailedError` that names `place`. Episodes end by truncation after
    `max_episode_steps` at the latest.

    Raises:
        ConfigError: when the environment cannot be made or its spaces are not supported.
    """
    env = with_limit(_make_checked(config, render_mode, place, keeps_info), max_episode_steps)
    is_stack = config.observation == "pixels" and stacked
    return StackedEnvironment(env, config.frame_stack) if is_stack else env


def _make_checked(
    config: EnvConfig, render_mode: str | None, place: str, keeps_info: bool
) -> CheckedEnvironment:
    search_working_directory()
    _hide_pygame(render_mode)
    if config.episodic_life and not has_vector(config):
        raise ConfigError(
            "env.episodic_life is for Atari's games observed as pixels, with no other env.kwargs "
            f"than {', '.join(sorted(VECTOR_KWARGS))}; {_key(config)} with {config.kwargs} is "
            "none: set it to false"
        )
    if is_atari(config):
        single = config.model_copy(update={"kwargs": single_frames_kwargs(config)})
        return _checked(preprocessed(_make(single, render_mode), config), config, place, keeps_info)
    env = _make(config, render_mode)
    if config.observation == "pixels":
        env = with_frames(env, config, render_mode, partial(_make, config))
    return _checked(env, config, place, keeps_info)


def _make(config: EnvConfig, render_mode: str | None) -> Environment:
    if config.factory is not None:
        return _make_from_factory(config.factory, config, render_mode)
    return _make_registered(config, render_mode)


def describe_environment(config: EnvConfig) -> EnvironmentSpec:
    """What the other roles must know; makes one environment, tries it and closes it.

    Raises:
        ConfigError: as `make_env`, and when a first few steps show that it does not work.
    """
    env = make_env(config, place="the trial before the start")
    try:
        probe(env)
        registered = env.unwrapped.spec if env.spec is None else env.spec
        observation_space, action_space = env.observation_space, env.action_space
        assert isinstance(action_space, spaces.Discrete), "make_env returned another action space"
        assert isinstance(observation_space, spaces.Box), "make_env returned another space"
        # A factory's environment may carry the spec of one that it wraps, and reward otherwise.
        its_own = registered if config.factory is None else None
        threshold = its_own.reward_threshold if its_own is not None else None
        return EnvironmentSpec(
            env_id=_name(config),
            observation_shape=tuple(int(n) for n in observation_space.shape or ()),
            observation_dtype=observation_space.dtype.str,
            n_actions=int(action_space.n),
            reward_threshold=None if threshold is None else float(threshold),
            max_episode_steps=own_limit(env),
            frame_stack=config.frame_stack if config.observation == "pixels" else None,
        )
    except EnvironmentFailedError as error:
        raise ConfigError(str(error)) from error
    finally:
        env.close()


def observes_images(config: EnvConfig) -> bool:
    """Whether the environment's own observations are pictures; False when it cannot be made."""
    try:
        env = _make(config, None)
    except ConfigError:
        return False
    try:
        return is_image(env.observation_space)
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
    register_games(config.id)
    try:
        with warnings.catch_warnings():
            # An id is what its user wants, whatever newer version there is.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="gymnasium")
            return gymnasium.make(bare_id(config.id), **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        suggestions = env_id_suggestions(config.id)
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
        raise ConfigError(
            f"{_key(config)} is not registered with Gymnasium{hint} {error}"
        ) from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(_missing_package(config, error)) from error
    except ImportError as error:
        raise ConfigError(
            f"{_key(config)} needs a module that cannot be imported: {error}. Install it, or start "
            "qfleet in the folder that holds it (ray.ship sends it to other hosts)."
        ) from error
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise _not_made(config, error) from error


def _missing_package(config: EnvConfig, error: Exception) -> str:
    complaint = str(error)
    for word, extra in _EXTRA_OF_PACKAGE.items():
        if word in complaint.lower():
            return f"{_key(config)} needs an optional package: pip install 'qfleet[{extra}]'"
    return f"{_key(config)} needs an optional package: {complaint}"


def _not_made(config: EnvConfig, error: BaseException) -> ConfigError:
    """What to say of an environment whose constructor or factory raised."""
    words = str(error)
    if isinstance(error, TypeError) and (
        "keyword argument" in words or "positional argument" in words
    ):
        return ConfigError(f"env.kwargs={config.kwargs} do not fit {_key(config)}: {error}")
    return ConfigError(
        f"{_key(config)} could not be made: it raised {user_error(error)}; the error is the "
        "environment's own"
    )


def _make_from_factory(path: str, config: EnvConfig, render_mode: str | None) -> Environment:
    function = _import_factory(path)
    try:
        env = function(**{**config.kwargs, "render_mode": render_mode})
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise _not_made(config, error) from error
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"{_key(config)} must return a gymnasium.Env, got {type(env).__name__}")
    return env


def _import_factory(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise ConfigError(
            f"env.factory={path!r} cannot be imported: {user_error(error)}. Start qfleet in the "
            "folder that holds the module, or install it (ray.ship sends it to other hosts)."
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(
            f"env.factory={path!r}: module {module_name} has no function {function_name}"
        )
    if not callable(function):
        raise ConfigError(f"env.factory={path!r} names a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]  # any callable a user's module holds


def _checked(
    env: Environment, config: EnvConfig, place: str, keeps_info: bool
) -> CheckedEnvironment:
    if not isinstance(env.action_space, spaces.Discrete):
        raise ConfigError(
            f"{_key(config)} has the action space {env.action_space}; Q-learning needs Discrete "
            "actions: choose a discrete variant, or discretize it in a wrapper given by env.factory"
        )
    form = _observation_form(env.observation_space, config)
    return CheckedEnvironment(env, _key(config), form, place=place, keeps_info=keeps_info)


def _observation_form(
    space: spaces.Space[Any], config: EnvConfig
) -> ObservationForm | FrameForm | PlaneForm:
    if config.observation == "pixels":
        assert isinstance(space, spaces.Box), "with_frames made it"
        return FrameForm(space)
    if config.observation == "planes":
        if not PlaneForm.takes(space):
            raise ConfigError(
                f"{_key(config)} observes {space}; env.observation planes takes grids [H, W, C] of "
                "bool or uint8: set it to state or pixels, or convert them in a wrapper given by "
                "env.factory"
            )
        assert isinstance(space, spaces.Box), "it takes boxes only"
        return PlaneForm(space)
    if _holds_image(space):
        raise ConfigError(
            f"{_key(config)} observes images ({space}): set env.observation pixels (the preset "
            "generic-pixels does), or reduce the image in a wrapper given by env.factory"
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
    return ObservationForm(space, flat)


def _holds_image(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return any(_holds_image(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return any(_holds_image(part) for part in space.spaces)
    return is_image(space)
