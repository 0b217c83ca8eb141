"""Names from other programs: our key, and our unit where it differs, by hand."""

from __future__ import annotations

import pytest

from qfleet.command_line.foreign_names import (
    COMMANDS,
    SWITCHES,
    Scales,
    closest,
    did_you_mean,
    explain,
    names,
    switch,
)
from qfleet.settings import config_reference

SCALES = Scales(batch_size=64, samples_per_insert=16, max_env_steps=500_000)

LINEAR = "--actors.epsilon_schedule linear"


def flags(name, value, scales=SCALES):
    return explain(name, value, scales, as_flags=True)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gamma", 0.99, "use --actors.discount 0.99"),
        ("lr", 1e-4, "use --learner.learning_rate 0.0001"),
        ("learning_rate", "1e-4", "use --learner.learning_rate 1e-4"),
        ("buffer_size", 1e6, "use --replay.capacity 1000000"),
        ("memory_size", 10_000, "use --replay.capacity 10000"),
        ("batch_size", 32, "use --learner.batch_size 32"),
        ("learning_starts", 1000, "use --replay.min_size_to_sample 1000"),
        (
            "exploration_final_eps",
            0.1,
            "use --actors.epsilon_schedule linear --actors.epsilon_end 0.1",
        ),
        (
            "exploration_initial_eps",
            1.0,
            "use --actors.epsilon_schedule linear --actors.epsilon_start 1",
        ),
        ("start_e", 1, "use --actors.epsilon_schedule linear --actors.epsilon_start 1"),
        ("end_e", 0.05, "use --actors.epsilon_schedule linear --actors.epsilon_end 0.05"),
        ("n_timesteps", "1e5", "use --run.max_env_steps 1e5"),
        (
            "steps_per_episode",
            1000,
            "use --learner.updates_per_episode 1000 --replay.samples_per_insert null "
            "--actors.count 1 --actors.envs_per_actor 1 (updates after",
        ),
        ("n_envs", 4, "use --actors.envs_per_actor 4 (for each actor"),
        ("num_envs", 4, "use --actors.envs_per_actor 4 (for each actor"),
        ("eps", 0.1, "use --actors.epsilon_schedule constant --actors.epsilon_end 0.1"),
        ("net_arch", [64, 64], "use --network.hidden_sizes [64,64]"),
        ("policy_kwargs", {"net_arch": [256, 256]}, "use --network.hidden_sizes [256,256]"),
        ("policy_kwargs", "dict(net_arch=[256, 256])", "use --network.hidden_sizes [256,256]"),
        ("prioritized_replay", True, "use --replay.sampling prioritized"),
        ("prioritized_replay", False, "use --replay.sampling uniform"),
        ("cuda", True, "use --learner.device auto (left out"),
        ("cuda", False, "use --learner.device cpu (left out"),
        ("torch_deterministic", True, "use --run.schedule lockstep (same seed, same bits"),
        ("capture_video", True, "use `qfleet play RUN --video FILE.mp4` after the run"),
        ("track", True, "trackers are not available yet; metrics.jsonl and TensorBoard"),
        ("n_frames", 8, "use --env.frame_stack 8 (with env.observation pixels)"),
        ("tau", 0.005, "use --learner.target_tau 0.005 (applied after every update)"),
        ("tau", 1.0, "use --learner.target_tau null (1 means hard syncs there"),
    ],
)
def test_explain_table(name, value, expected):
    assert flags(name, value)[: len(expected)] == expected


@pytest.mark.parametrize("name", ["target_update_interval", "target_network_frequency"])
def test_explain_target_period_is_converted_to_learner_steps(name):
    # 1000 env steps · 16 samples each / batches of 64 = 250 updates
    assert flags(name, 1000) == (
        "use --learner.target_update_period_learner_steps 250 (1000 env steps there; here learner "
        "steps = env steps x samples_per_insert 16 / batch_size 64)"
    )


def test_explain_eval_period_is_converted_to_learner_steps():
    assert flags("eval_freq", 10_000).startswith("use --eval.period_learner_steps 2500 (")


@pytest.mark.parametrize(
    ("others", "env_steps", "learner_steps"),
    [
        ({"train_frequency": 10}, 500, "50 (500 env steps there; here learner steps = env steps x"),
        ({"train_freq": 256, "gradient_steps": 128}, 10, "5 (10 env steps"),
        ({"train_freq": 4, "n_envs": 8}, 320, "10 (320 env steps"),
        ({"gradient_steps": -1}, 70, "70 (70 env steps"),
        ({"train_freq": 0}, 500, "LEARNER_STEPS ("),
        ({"tau": 1.0}, 500, "125 (500 env steps"),  # no schedule of theirs: the ratio in force
    ],
)
def test_explain_target_period_follows_the_schedule_given_beside_it(
    others, env_steps, learner_steps
):
    scales = Scales(batch_size=64, samples_per_insert=16, others=others)

    assert flags("target_update_interval", env_steps, scales).startswith(
        f"use --learner.target_update_period_learner_steps {learner_steps}"
    )


@pytest.mark.parametrize(
    ("bare", "expected"),
    [
        ("track", ("track", True)),
        ("dueling", ("dueling", True)),
        ("network.dueling", ("dueling", True)),
        ("capture_video", ("capture_video", True)),
        ("no_cuda", ("cuda", False)),
        ("gamma", None),
        ("no_gamma", None),
        ("seed", None),
    ],
)
def test_switch_is_a_foreign_name_that_stands_alone(bare, expected):
    assert switch(bare) == expected


def test_every_switch_is_a_foreign_name():
    assert set(names()) >= SWITCHES


def test_explain_period_without_a_ratio_leaves_a_placeholder():
    free_running = Scales(batch_size=64, samples_per_insert=None)

    assert flags("target_update_interval", 1000, free_running) == (
        "use --learner.target_update_period_learner_steps LEARNER_STEPS "
        "(it counts env steps there and learner steps here)"
    )
    assert "LEARNER_STEPS" in flags("target_update_interval", "many")


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"train_freq": 4}, "16"),
        ({"train_frequency": 10}, "6.4"),
        ({"gradient_steps": 8, "train_freq": 16}, "32"),
        ({"train_freq": 4, "n_envs": 8}, "2"),
        ({"gradient_steps": -1, "train_freq": 8}, "64"),  # as many updates as env steps
    ],
)
def test_explain_train_frequency_becomes_samples_per_insert(others, expected):
    scales = Scales(batch_size=64, others=others)
    name = next(iter(others))

    assert flags(name, others[name], scales).startswith(
        f"use --replay.samples_per_insert {expected} ("
    )


def test_explain_impossible_gradient_steps_names_the_key_only():
    scales = Scales(others={"gradient_steps": 0})

    assert flags("gradient_steps", 0, scales).startswith("use --replay.samples_per_insert:")


@pytest.mark.parametrize(
    ("scales", "steps"),
    [
        (SCALES, "50000"),
        (Scales(max_env_steps=500_000, others={"n_timesteps": "1e5"}), "10000"),
        (Scales(max_env_steps=None), "ENV_STEPS"),
        (Scales(others={"timesteps": "2M"}), "200000"),
    ],
)
def test_explain_exploration_fraction_is_of_the_budget(scales, steps):
    assert flags("exploration_fraction", 0.1, scales) == (
        f"use --actors.epsilon_schedule linear --actors.epsilon_decay_env_steps {steps} "
        "(a fraction of the run there, env steps here)"
    )


def test_explain_in_a_file_is_written_as_yaml():
    assert explain("eps", 0.1, SCALES, as_flags=False) == (
        "use actors.epsilon_schedule: constant, actors.epsilon_end: 0.1"
    )


def test_explain_unknown_name_is_none():
    assert flags("not_a_name", 1) is None


@pytest.mark.parametrize("name", names())
def test_explain_every_name_answers_any_value_with_keys_that_exist(name):
    for value in (None, True, 0, -1, 2.5, "x", "", [], {}):
        answer = flags(name, value)
        assert answer
        for word in answer.split():
            if word.startswith("--") and not word.startswith(("--video", "--runtime")):
                assert word[2:].rstrip(":") in config_reference.keys()  # noqa: SIM118 - a function


def test_commands_lead_to_commands_that_exist():
    from qfleet.command_line.cli import _COMMANDS

    assert COMMANDS["enjoy"] == "play"
    assert {words.split()[0] for words in COMMANDS.values()} <= set(_COMMANDS)


def test_closest_ignores_case_and_drops_weak_second_guesses():
    assert closest("CARTPOL", ["cartpole", "lunarlander"]) == ["cartpole"]
    assert closest("actors.cuont", ["actors.discount", "actors.count"]) == ["actors.count"]
    assert closest("zzz", ["cartpole"]) == []
    assert closest("a", []) == []


def test_did_you_mean_texts():
    assert did_you_mean("trian", ["train", "eval"]) == "; did you mean train?"
    assert did_you_mean("xyz", ["train"]) == ""
