"""An actor on a network with noisy layers: they explore, ε does not; what it draws is captured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qfleet.actors.actor import Actor
from qfleet.actors.build import build_actor
from qfleet.actors.plan import ActorPlan
from qfleet.common.types import EnvironmentSpec, ParamsSnapshot
from qfleet.learner.fast.initial_network import initial_network
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


def plan_of(**network: Any) -> ActorPlan:
    config = Config(
        network={"hidden_sizes": [8], **network},
        actors={"envs_per_actor": 3},
        replay={"sampling": "prioritized", "importance_sampling_end_learner_steps": 9},
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).actor


def actor_of(plan: ActorPlan) -> Actor:
    actor = build_actor(plan, SPEC, run_id="r", slot=0, incarnation=0)
    parameters, _ = initial_network(plan.network, SPEC, seed=3)
    arrays = {name: array * 9 if "sigma" in name else array for name, array in parameters.items()}
    actor.set_params(ParamsSnapshot(1, 0, 0, True, arrays))
    return actor


def actions_of(actor: Actor, n_steps: int) -> list[int]:
    actor.act_steps(n_steps)
    chunk = actor.take_chunk()
    assert chunk is not None
    return [int(action) for action in chunk.columns["action"]]


def test_noisy_network_plays_with_epsilon_0_and_not_always_what_its_means_say() -> None:
    plan = plan_of(noisy=True)
    assert (plan.epsilon_schedule, plan.epsilon_end) == ("constant", 0.0)
    actor = actor_of(plan)
    actor.act_steps(90)
    chunk = actor.take_chunk()
    assert chunk is not None
    assert chunk.priorities is not None
    means = actor._params.online_function.q_values(chunk.columns["observation"]).argmax(axis=1)
    assert 0.05 < np.mean(means != chunk.columns["action"]) < 0.95


def test_captured_actor_draws_on_as_it_would_have() -> None:
    plan = plan_of(noisy=True, dueling=True)
    one, other = actor_of(plan), actor_of(plan)
    actions_of(one, 30)
    other.restore(one.capture())
    assert actions_of(other, 30) == actions_of(one, 30)


@pytest.mark.parametrize("distribution", ["c51", "qr", "iqn"])
def test_priorities_of_each_distribution_are_finite_and_not_negative(distribution: str) -> None:
    actor = actor_of(
        plan_of(distribution=distribution, value_min=0, value_max=9, atoms=4, hidden_sizes=[8, 8])
    )
    actor.act_steps(30)
    chunk = actor.take_chunk()
    assert chunk is not None
    assert chunk.priorities is not None
    assert chunk.priorities.shape == chunk.columns["action"].shape
    assert np.isfinite(chunk.priorities).all()
    assert (chunk.priorities > 0).all()
