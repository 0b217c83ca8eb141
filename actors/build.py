"""Builds an actor's core from its plan; called by both runtimes so that both build the same."""

from __future__ import annotations

from qfleet.actors.actor import Actor
from qfleet.actors.plan import ActorPlan
from qfleet.common.q_functions import NetworkFunction, QFunctions
from qfleet.common.types import EnvironmentSpec, ParamsSnapshot
from qfleet.common.vector_envs import make_vector_env


def build_actor(
    plan: ActorPlan,
    spec: EnvironmentSpec,
    *,
    run_id: str,
    slot: int,
    incarnation: int,
    ladder: tuple[int, int] | None = None,
) -> Actor:
    """The actor of `slot`; see `Actor`."""
    q_functions = QFunctions(plan.network, spec)

    def build(snapshot: ParamsSnapshot) -> NetworkFunction:
        return q_functions.of(snapshot.arrays)

    return Actor(
        plan,
        spec,
        make_vector_env(
            plan.env,
            plan.envs_per_actor,
            place=f"actor {slot}",
            max_episode_steps=plan.max_episode_steps,
        ),
        build,
        run_id=run_id,
        slot=slot,
        incarnation=incarnation,
        ladder=ladder,
    )
