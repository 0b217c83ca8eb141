"""The Python interface beside `train`: load a trained policy, evaluate it, make its environment.

None of this needs Ray. A policy on the built-in network needs neither torch nor an environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qfleet.common.config import EnvConfig
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.params import decode_safetensors
from qfleet.common.q_functions import build_q_function
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.common.user_code import installed_only
from qfleet.run_files.checkpoint import PARAMS_FILE
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.settings.config import Config
from qfleet.settings.trust import check_loaded, env_code, network_code

if TYPE_CHECKING:
    from qfleet.actors.evaluator import EpisodeStatistics


class Policy:
    """A trained Q-network that acts greedily.

    `spec` says which observations it takes; `path` is the file that it came from. A network of
    code that is not installed needs `allow_code`.
    """

    def __init__(self, data: bytes, path: Path, allow_code: bool = False) -> None:
        arrays, network, spec = decode_safetensors(data)
        self.spec: EnvironmentSpec = spec
        self.path = path
        with _trusted(network_code(network), path, allow_code):
            try:
                self._q_function = build_q_function(network, spec, arrays)
            except KeyError as error:
                raise CheckpointError(f"{path} lacks the array {error} of its network") from error

    def q_values(self, observation: Array) -> Array:
        """`float32 [B, A]` for one observation (B = 1) or a batch.

        Raises:
            ValueError: when the shape is neither one observation's nor a batch's.
        """
        batch, _ = self._as_batch(observation)
        return self._q_function.q_values(batch)

    def act(self, observation: Array) -> Any:
        """The greedy action: an int for one observation, `int64 [B]` for a batch."""
        batch, is_single = self._as_batch(observation)
        actions = np.argmax(self._q_function.q_values(batch), axis=1)
        return int(actions[0]) if is_single else actions

    def _as_batch(self, observation: Array) -> tuple[Array, bool]:
        dtype = np.dtype(self.spec.observation_dtype)
        array = np.asarray(observation, dtype=dtype)
        shape = self.spec.observation_shape
        if array.shape == shape:
            return array[None], True
        if array.shape[1:] == shape:
            return array, False
        raise ValueError(
            f"an observation must be {dtype.name} {list(shape)} or a batch {['B', *shape]}, "
            f"got {list(array.shape)}"
        )


def load_params(run: str | Path) -> dict[str, Array]:
    """The online network's arrays of a run, under PyTorch module names.

    Raises:
        ConfigError: when there is no such run.
        CheckpointError: when its files are damaged.
    """
    return decode_safetensors(_params_bytes(run)[0])[0]


def load_policy(run: str | Path | None = None, *, allow_code: bool = False) -> Policy:
    """The policy of a run: its `best/`, or `RUN/latest`, or a checkpoint; None is the latest run.

    Args:
        run: A run's directory, or something in it.
        allow_code: Whether its `network.factory` may come from a module that is neither installed
            nor imported already.

    Raises:
        ConfigError: when there is no such run, or it names such a module.
        CheckpointError: when its files are damaged.
    """
    data, path = _params_bytes(run)
    return Policy(data, path, allow_code)


def _params_bytes(run: str | Path | None) -> tuple[bytes, Path]:
    from qfleet.run_files.find_runs import resolve_run

    path = resolve_run(run)
    if path.name != PARAMS_FILE or not (path.parent / "manifest.json").exists():
        return path.read_bytes(), path
    checkpoint = read_checkpoint(path.parent)
    if PARAMS_FILE not in checkpoint.names:
        raise CheckpointError(f"{path.parent} holds no {PARAMS_FILE}")
    return bytes(checkpoint.open(PARAMS_FILE)), path


@contextlib.contextmanager
def _trusted(code: dict[str, str], where: Path, allow_code: bool) -> Iterator[None]:
    """Inside, the code that a file at `where` names may be imported, when it may."""
    if allow_code or not code:
        yield
        return
    check_loaded(code, str(where))
    with installed_only():
        yield


def load_run_config(run: str | Path | None) -> Config:
    """The resolved configuration that a run was trained with."""
    from qfleet.run_files.find_runs import find_run
    from qfleet.run_files.resume import load_saved_config

    return load_saved_config(find_run(run))


def _env_config(env: str | Path | EnvConfig) -> tuple[EnvConfig, Path | None]:
    """An environment's section, and the run's file that it was loaded from.

    Args:
        env: An id, the section itself, or the run directory whose environment is meant.
    """
    from qfleet.run_files.find_runs import CONFIG_FILE, find_run, holds_run

    if isinstance(env, EnvConfig):
        return env, None
    if isinstance(env, Path) or holds_run(env):
        return load_run_config(env).env, find_run(env) / CONFIG_FILE
    return EnvConfig(id=env), None


@contextlib.contextmanager
def _environment(env: str | Path | EnvConfig, allow_code: bool) -> Iterator[EnvConfig]:
    """Inside, the environment may be made."""
    config, loaded_from = _env_config(env)
    if loaded_from is None:
        yield config
        return
    with _trusted(env_code(config), loaded_from, allow_code):
        yield config


def make_env(
    run: str | Path | EnvConfig,
    render_mode: str | None = None,
    *,
    max_episode_steps: int | None = None,
    allow_code: bool = False,
) -> Any:
    """The environment of a run (or an environment id), with the run's preprocessing.

    Args:
        run: A run's directory, an id or an `env` section.
        render_mode: Gymnasium's.
        max_episode_steps: Longer episodes are truncated; by default as in the run.
        allow_code: Whether a run's environment may come from a module that is neither installed
            nor imported already; an id or a section is the caller's own word.

    Raises:
        ConfigError: when the id is unknown or its action space is not discrete.
    """
    from qfleet.common import envs

    limit = _episode_limit(run) if max_episode_steps is None else max_episode_steps
    with _environment(run, allow_code) as config:
        return envs.make_env(config, render_mode, max_episode_steps=limit)


def evaluate(
    policy: Policy,
    env: str | Path | EnvConfig,
    *,
    episodes: int = 100,
    seed: int = 0,
    allow_code: bool = False,
) -> Array:
    """Undiscounted returns `float64 [episodes]` of greedy play.

    Args:
        policy: Of `load_policy`.
        env: As for `make_env`.
        episodes: How many.
        seed: Of their initial states.
        allow_code: As for `make_env`.

    Raises:
        ConfigError: when the environment's observations are not the policy's.
    """
    return play_episodes(policy, env, episodes, seed, allow_code=allow_code).returns


def play_episodes(
    policy: Policy,
    env: str | Path | EnvConfig,
    episodes: int,
    seed: int,
    *,
    max_episode_steps: int | None = None,
    allow_code: bool = False,
) -> EpisodeStatistics:
    """As `evaluate`, with the lengths and how many episodes were cut.

    `max_episode_steps` is by default the run's, or what `auto` means for the environment.
    """
    limit = _episode_limit(env) if max_episode_steps is None else max_episode_steps
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"evaluate takes a policy first, got {type(policy).__name__}; write "
            "qfleet.evaluate(qfleet.load_policy(RUN), RUN)"
        )
    with _environment(env, allow_code) as config:
        return _play(policy, config, episodes, seed, limit)


def _episode_limit(env: str | Path | EnvConfig) -> int | None:
    """The run's limit when `env` is a run."""
    from qfleet.run_files.find_runs import holds_run

    if isinstance(env, EnvConfig) or not (isinstance(env, Path) or holds_run(env)):
        return None
    limit = load_run_config(env).eval.max_episode_steps
    return None if limit == "auto" else limit


def _play(
    policy: Policy, config: EnvConfig, episodes: int, seed: int, limit: int | None
) -> EpisodeStatistics:
    from qfleet.actors.evaluator import Evaluator
    from qfleet.common import envs
    from qfleet.common.episode_limits import episode_limit

    spec = envs.describe_environment(config)
    wanted = (policy.spec.observation_shape, policy.spec.n_actions)
    if (spec.observation_shape, spec.n_actions) != wanted:
        raise ConfigError(
            f"{spec.env_id} has observations {list(spec.observation_shape)} and "
            f"{spec.n_actions} actions, the policy wants {list(wanted[0])} and {wanted[1]}"
        )
    evaluator = Evaluator(config, max_steps_per_episode=limit or episode_limit(spec))
    try:
        return evaluator.evaluate(policy, episodes, seed)
    finally:
        evaluator.close()
