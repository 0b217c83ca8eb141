"""One sub-environment's state, for environments that offer `capture` and `restore`.

Called by the vector environment adapter; see there for what an environment has to offer.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from qfleet.common.episode_limits import restore_elapsed_steps, time_limits

Environment = gymnasium.Env[Any, Any]


def has_method(env: Environment, name: str) -> bool:
    """Whether the environment or a wrapper of it can be called by that name."""
    try:
        return callable(env.get_wrapper_attr(name))
    except AttributeError:
        return False


def capture_sub_env(env: Environment) -> dict[str, Any]:
    """Its own state, the time limits' counts and the generator."""
    return {
        "state": env.get_wrapper_attr("capture")(),
        "elapsed_steps": [limit._elapsed_steps for limit in time_limits(env)],
        "rng": env.unwrapped.np_random.bit_generator.state,
    }


def restore_sub_env(env: Environment, captured: dict[str, Any]) -> None:
    """The inverse of `capture_sub_env`."""
    env.get_wrapper_attr("restore")(captured["state"])
    restore_elapsed_steps(env, captured["elapsed_steps"])
    env.unwrapped.np_random.bit_generator.state = captured["rng"]
