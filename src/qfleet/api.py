"""The Python interface beside `train`: load a trained policy, evaluate it, make its environment.

None of this needs Ray. A policy on the built-in network needs neither torch nor an environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qfleet.common.config import EnvConfig
from qfleet.common.errors import CheckpointError
from qfleet.common.params import decode_safetensors
from qfleet.common.q_functions import build_q_function
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.run_files.checkpoint import PARAMS_FILE, read_checkpoint
from qfleet.settings.config import Config


class Policy:
    """A trained Q-network that acts greedily.

    `spec` says which observations it takes; `path` is the file that it came from.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        arrays, network, spec = decode_safetensors(data)
        self.spec: EnvironmentSpec = spec
        self.path = path
        self._q_function = build_q_function(network, spec, arrays)

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
        array = np.asarray(observation, dtype=np.float32)
        shape = self.spec.observation_shape
        if array.shape == shape:
            return array[None], True
        if array.shape[1:] == shape:
            return array, False
        raise ValueError(
            f"an observation must be float32 {list(shape)} or a batch {['B', *shape]}, "
            f"got {list(array.shape)}"
        )


def load_params(run: str | Path) -> dict[str, Array]:
    """The online network's arrays of a run, under PyTorch module names.

    Raises:
        ConfigError: when there is no such run.
        CheckpointError: when its files are damaged.
    """
    return decode_safetensors(_params_bytes(run)[0])[0]


def load_policy(run: str | Path | None = None) -> Policy:
    """The policy of a run: its `best/`, or `RUN/latest`, or a checkpoint; None is the latest run.

    Raises:
        ConfigError: when there is no such run.
        CheckpointError: when its files are damaged.
    """
    return Policy(*_params_bytes(run))


def _params_bytes(run: str | Path | None) -> tuple[bytes, Path]:
    from qfleet.run_files.run_directory import resolve_run

    path = resolve_run(run)
    if path.name != PARAMS_FILE or not (path.parent / "manifest.json").exists():
        return path.read_bytes(), path
    files = read_checkpoint(path.parent).files
    if PARAMS_FILE not in files:
        raise CheckpointError(f"{path.parent} holds no {PARAMS_FILE}")
    return files[PARAMS_FILE], path


def load_run_config(run: str | Path | None) -> Config:
    """The resolved configuration that a run was trained with."""
    import yaml

    from qfleet.run_files.run_directory import CONFIG_FILE, find_run

    text = (find_run(run) / CONFIG_FILE).read_text()
    return Config.model_validate(yaml.safe_load(text))


def _env_config(env: str | Path | EnvConfig) -> EnvConfig:
    """An environment's id, its section, or the run directory whose environment is meant."""
    from qfleet.run_files.run_directory import holds_run

    if isinstance(env, EnvConfig):
        return env
    if isinstance(env, Path) or holds_run(env):
        return load_run_config(env).env
    return EnvConfig(id=env)


def make_env(run: str | Path | EnvConfig, render_mode: str | None = None) -> Any:
    """The environment of a run (or an environment id), with the run's preprocessing.

    Raises:
        ConfigError: when the id is unknown or its action space is not discrete.
    """
    from qfleet.common import envs

    return envs.make_env(_env_config(run), render_mode)


def evaluate(
    policy: Policy, env: str | Path | EnvConfig, *, episodes: int = 100, seed: int = 0
) -> Array:
    """Undiscounted returns `float64 [episodes]` of greedy play.

    Raises:
        ConfigError: when the environment's observations are not the policy's.
    """
    from qfleet.actors.evaluator import Evaluator
    from qfleet.common import envs
    from qfleet.common.errors import ConfigError

    config = _env_config(env)
    spec = envs.describe_environment(config)
    wanted = (policy.spec.observation_shape, policy.spec.n_actions)
    if (spec.observation_shape, spec.n_actions) != wanted:
        raise ConfigError(
            f"{spec.env_id} has observations {list(spec.observation_shape)} and "
            f"{spec.n_actions} actions, the policy wants {list(wanted[0])} and {wanted[1]}"
        )
    evaluator = Evaluator(config, 0.0)
    try:
        return evaluator.evaluate(policy, episodes, seed).returns
    finally:
        evaluator.close()
