"""How long an episode may be: the environment's own time limit, and ours where it has none.

Called wherever environments are made. A policy that never ends an episode would otherwise be
evaluated for ever, and an actor would never tell of one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit

from qfleet.common.optional_games import namespace
from qfleet.common.types import EnvironmentSpec

Environment = gymnasium.Env[Any, Any]

DEFAULT_EPISODE_LIMIT = 10_000
ATARI_EPISODE_LIMIT = 27_000
"""108,000 frames of four: half an hour of play, the limit of Mnih et al. 2015."""


def episode_limit(spec: EnvironmentSpec) -> int:
    """Env steps after which an episode is cut when the configuration does not say."""
    if spec.max_episode_steps is not None:
        return spec.max_episode_steps
    return ATARI_EPISODE_LIMIT if namespace(spec.env_id) == "ALE" else DEFAULT_EPISODE_LIMIT


def cuts_episodes(spec: EnvironmentSpec, max_episode_steps: int) -> bool:
    """Whether this limit is shorter than the environment's own."""
    return spec.max_episode_steps is None or max_episode_steps < spec.max_episode_steps


def time_limits(env: Environment) -> list[TimeLimit[Any, Any]]:
    """Every time limit around `env`, the outermost first."""
    found: list[TimeLimit[Any, Any]] = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            found.append(env)
        env = env.env
    return found


def own_limit(env: Environment) -> int | None:
    """The environment's time limit: its wrappers' shortest, else the registered one."""
    limits = [limit._max_episode_steps for limit in time_limits(env)]
    registered = env.unwrapped.spec if env.spec is None else env.spec
    if not limits and registered is not None and registered.max_episode_steps is not None:
        limits = [registered.max_episode_steps]
    return min(limits, default=None)


def with_limit(env: Environment, max_episode_steps: int | None) -> Environment:
    """`env`, truncated after `max_episode_steps` unless it ends its episodes by then anyway."""
    own = own_limit(env)
    if max_episode_steps is None or (own is not None and own <= max_episode_steps):
        return env
    return TimeLimit(env, max_episode_steps)


def restore_elapsed_steps(env: Environment, elapsed: list[int]) -> None:
    """Set the time limits' counts as captured from the same environment, outermost first.

    Only our own limit, the outermost, may have come or gone since; a new one counts as they do.
    """
    limits = time_limits(env)
    for limit, steps in zip(limits[::-1], elapsed[::-1], strict=False):
        limit._elapsed_steps = steps  # type: ignore[assignment]  # annotated by its None
    for limit in limits[: max(0, len(limits) - len(elapsed))]:
        limit._elapsed_steps = max(elapsed, default=0)  # type: ignore[assignment]  # as above
