"""From the configuration to the roles' plans: every field by hand, and nothing unresolved."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields

import pytest

from qfleet.common.errors import ConfigError
from qfleet.common.plan_json import plan_from_json, plan_to_json
from qfleet.replay_server.rate_limiter import EpisodeLimiter
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans
from qfleet.settings.presets import names

OTHER = {
    "seed": 9,
    "env": {"id": "Acrobot-v1", "kwargs": {"max_episode_steps": 9}},
    "network": {"hidden_sizes": (5, 4), "normalization": "layer"},
    "actors": {
        "count": 6,
        "min_count": 2,
        "envs_per_actor": 3,
        "num_cpus": 0.25,
        "n_step": 2,
        "discount": 0.9,
        "reward_scale": 0.5,
        "epsilon_schedule": "linear",
        "epsilon_start": 0.8,
        "epsilon_end": 0.1,
        "epsilon_decay_env_steps": 77,
        "epsilon_decay_episodes": 8,
        "epsilon_base": 0.5,
        "epsilon_ladder_exponent": 3.0,
        "chunk_transitions": 8,
        "max_chunk_transitions": 16,
    },
    "replay": {
        "capacity": 1001,
        "shards": 4,
        "sampling": "prioritized",
        "compression": "none",
        "priority_exponent": 0.7,
        "importance_sampling_exponent": 0.5,
        "priority_epsilon": 1e-4,
        "min_size_to_sample": 101,
        "samples_per_insert": 4.0,
        "limiter_tolerance_samples": 900,
    },
    "learner": {
        "device": "cpu",
        "batch_size": 10,
        "updates_per_call": 5,
        "max_blocks_per_request": 2,
        "optimizer": "adam",
        "learning_rate": 0.02,
        "learning_rate_schedule": "constant",
        "learning_rate_end": 0.0,
        "learning_rate_end_learner_steps": None,
        "momentum": 0.3,
        "loss": "mse",
        "huber_delta": 2.0,
        "double_q": False,
        "munchausen": False,
        "target_network": True,
        "target_update_period_learner_steps": 30,
        "target_tau": 0.5,
        "publish_period_learner_steps": 20,
        "max_grad_norm": 3.0,
        "compile": "off",
        "num_cpus": 2,
        "num_gpus": 0,
    },
    "eval": {"period_learner_steps": 40, "epsilon": 0.05, "max_episode_steps": 77},
    "run": {"max_env_steps": 5000, "max_wall_s": 60.0, "checkpoint_replay": "none"},
    "ray": {"address": "host:1", "wait_for_resources_s": 7.0, "ship": ("my_env.py",)},
}


def plans_of(**changes):
    config = Config.model_validate({**OTHER, **changes})
    return run_plans(resolve_config(config, None, cpus=2, gpus=0))


def test_actor_plan_by_hand():
    plan = asdict(plans_of().actor)
    assert plan.pop("env") == Config.model_validate(OTHER).env
    assert plan.pop("network") == Config.model_validate(OTHER).network
    expected = {name: OTHER["actors"][name] for name in OTHER["actors"] if name != "min_count"}
    extra = {
        "seed": 9,
        "gives_priorities": True,
        "double_q": False,
        "munchausen": False,
        "has_target_syncs": False,
        "max_episode_steps": 77,
        "max_memory_gb": None,
        "max_abs_reward": None,
    }
    assert plan == {**expected, **extra}


def test_evaluator_plan_by_hand():
    plan = plans_of().evaluator
    assert (plan.epsilon, plan.num_cpus, plan.max_episode_steps) == (0.05, 0.0, 77)
    assert (plan.env.id, plan.network.hidden_sizes) == ("Acrobot-v1", (5, 4))


def test_replay_plan_is_of_one_shard_with_the_whole_window():
    assert asdict(plans_of().replay) == {
        "seed": 9,
        "num_cpus": 0.5,
        "capacity": 250,
        "sampling": "prioritized",
        "priority_exponent": 0.7,
        "priority_epsilon": 1e-4,
        "min_size_to_sample": 26,
        "samples_per_insert": 4.0,
        "limiter_tolerance_samples": 900,
        "largest_chunk_transitions": 16,
        "largest_request_samples": 10 * 5 * 2,
        "compression": "none",
    }


def test_learner_plan_by_hand():
    plan = asdict(plans_of().learner)
    assert plan.pop("network") == Config.model_validate(OTHER).network
    expected = {name: value for name, value in OTHER["learner"].items() if name != "device"}
    assert plan == {
        **expected,
        "seed": 9,
        "eval_period_learner_steps": 40,
        "is_prioritized": True,
        "frame_bytes": 0,
        "precision": "float32",
        "importance_sampling_exponent": 0.5,
        # (5000 env steps − 101) · 4 draws / batches of 10
        "importance_sampling_end_learner_steps": 1960,
        "max_learner_steps": None,
        "max_env_steps": 5000,
        "max_wall_s": 60.0,
        "samples_per_insert": 4.0,
    }


@pytest.mark.parametrize(
    ("learner", "has_syncs"),
    [({}, True), ({"target_tau": 0.1}, False), ({"target_network": False}, False)],
)
def test_actors_and_learner_agree_whether_targets_are_announced(learner, has_syncs):
    plans = plans_of(learner=learner)
    assert plans.actor.has_target_syncs is plans.learner.has_hard_syncs is has_syncs


def test_fleet_and_cluster_plan_by_hand():
    plans = plans_of()
    assert (plans.fleet.actors, plans.fleet.min_actors, plans.fleet.shards) == (6, 2, 4)
    assert not plans.fleet.checkpoints_hold_replay
    # learner 2, four shards, six actors; nothing is set aside for the evaluator
    assert plans.cluster.resources == {"CPU": 2 + 4 * 0.5 + 6 * 0.25, "GPU": 0.0}
    assert plans.cluster.address == "host:1"
    assert (plans.cluster.wait_for_resources_s, plans.cluster.ship) == (7.0, ("my_env.py",))


def test_needs_of_roles_by_hand_with_the_resources_that_pin_them():
    pins = {
        "learner_resources": {"gpu_host": 0.01},
        "replay_resources": {"big": 1},
        "actor_resources": {"player": 0.5},
    }
    cluster = plans_of(ray=pins).cluster
    assert [str(need) for need in cluster.needs] == [
        "1 learner (CPU 2, gpu_host 0.01)",
        "4 replay shards (CPU 0.5, big 1)",
        "6 actors (CPU 0.25, player 0.5)",
    ]
    assert cluster.resources == {
        "CPU": 5.5,
        "GPU": 0.0,
        "gpu_host": 0.01,
        "big": 4.0,
        "player": 3.0,
    }
    # Only as many actors as actors.min_count must have room; in lockstep all.
    assert cluster.actors.least == 2
    assert plans_of(run={"schedule": "lockstep"}).cluster.actors.least == 6


@pytest.mark.parametrize(
    ("ray", "is_lean"),
    [
        ({}, False),
        ({"lean": True}, True),
        ({"lean": False}, False),
        ({"lean": True, "ship": ("my_env.py",)}, False),
    ],
)
def test_lean_start_is_asked_for_and_never_with_files_to_ship(ray, is_lean):
    assert plans_of(ray=ray).cluster.is_lean is is_lean


PER_EPISODE = {
    "learner": {"updates_per_episode": 10},
    "replay": {"samples_per_insert": None},
    "actors": {"count": 1, "envs_per_actor": 1},
}


@pytest.mark.parametrize(
    ("changes", "compile_mode"),
    [
        ({}, "auto"),
        ({"runtime": "local"}, "off"),
        ({"run": {"schedule": "lockstep", "max_env_steps": 10}}, "off"),
        (PER_EPISODE, "off"),
        ({"runtime": "local", "learner": {"compile": "required"}}, "required"),
    ],
)
def test_path_is_open_in_asynchronous_runs_alone(changes, compile_mode):
    learner = {"compile": "auto", **changes.get("learner", {})}
    assert plans_of(**{**changes, "learner": learner}).learner.compile == compile_mode


def test_lockstep_run_that_does_not_know_its_path_is_refused():
    resolved = resolve_config(Config(runtime="local"), None, cpus=2, gpus=0)
    learner = resolved.learner.model_copy(update={"compile": "auto"})
    with pytest.raises(ConfigError, match=r"learner\.compile is unresolved"):
        run_plans(resolved.model_copy(update={"learner": learner}))


def test_round_of_a_run_per_episode_is_one_episode():
    per_episode = plans_of(**PER_EPISODE)
    assert per_episode.fleet.rounds.n_env_steps is None
    assert per_episode.fleet.rounds.learning.episodes == EpisodeLimiter(10, 64)


@pytest.mark.parametrize("preset", names())
def test_plans_of_every_preset_survive_the_way_to_their_role(preset):
    plans = run_plans(
        resolve_config(load_config(preset, [], {"env.id": "CartPole-v1"}), None, cpus=8, gpus=1)
    )
    for plan in plans[:4]:
        assert plan_from_json(type(plan), plan_to_json(plan)) == plan


def test_unresolved_configuration_is_refused_by_name():
    with pytest.raises(
        ConfigError, match=r"unresolved in count, envs_per_actor, max_episode_steps, chunk_tr"
    ):
        run_plans(Config())


def test_no_plan_has_a_default_that_could_stand_in_for_a_number():
    for plan in plans_of()[:4]:
        assert {field.default for field in fields(plan)} == {MISSING}
        assert {field.default_factory for field in fields(plan)} == {MISSING}


def test_default_run_has_room_on_a_cluster_of_two_cores():
    config = resolve_config(load_config("cartpole", [], {}), None, cpus=2, gpus=0)
    assert run_plans(config).cluster.resources["CPU"] <= 2.0
