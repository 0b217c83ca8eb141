"""Builds an actor's core from plain data; called by both runtimes so that both build the same."""

from __future__ import annotations

from qfleet.actors.actor import Actor
from qfleet.common.config import Config
from qfleet.common.q_functions import QFunction, build_q_function
from qfleet.common.types import EnvironmentSpec, ParamsSnapshot
from qfleet.common.vector_envs import make_vector_env


def build_actor(
    config: Config, spec: EnvironmentSpec, *, run_id: str, slot: int, incarnation: int
) -> Actor:
    """The actor of `slot`; `actors.count` and `actors.envs_per_actor` must be resolved."""
    count, n_envs = config.actors.count, config.actors.envs_per_actor
    if not isinstance(count, int) or not isinstance(n_envs, int):
        raise TypeError("actors.count and actors.envs_per_actor must be resolved to numbers first")

    def build(snapshot: ParamsSnapshot) -> QFunction:
        return build_q_function(config.network, spec, snapshot.arrays)

    return Actor(
        run_id=run_id,
        slot=slot,
        incarnation=incarnation,
        n_actors=count,
        config=config,
        spec=spec,
        env=make_vector_env(config.env, n_envs, place=f"actor {slot}"),
        build_q_function=build,
        seed=config.seed,
    )
