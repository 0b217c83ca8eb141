"""A whole command of another program, converted: the line is run through the parser again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.common.errors import ConfigError
from qfleet.settings.config import Config
from qfleet.settings.config_loading import load_config

CLEANRL = (
    "CartPole-v1 --learning-rate 2.5e-4 --num-envs 1 --buffer-size 10000 --gamma 0.99 --tau 1.0 "
    "--target-network-frequency 500 --batch-size 128 --start-e 1 --end-e 0.05 "
    "--exploration-fraction 0.5 --learning-starts 10000 --train-frequency 10 "
    "--total-timesteps 500000 --seed 3 --track --capture-video --cuda --torch-deterministic"
)
ZOO = """\
n_timesteps: 5e4
policy: MlpPolicy
learning_rate: 2.3e-3
batch_size: 64
buffer_size: 100000
learning_starts: 1000
gamma: 0.99
target_update_interval: 10
train_freq: 256
gradient_steps: 128
exploration_fraction: 0.16
exploration_final_eps: 0.04
policy_kwargs: "dict(net_arch=[256, 256])"
"""


def load(command: str) -> Config:
    arguments = parse_train_arguments(shlex.split(command))
    return load_config(
        arguments.target, arguments.files, arguments.settings, problems=arguments.problems
    )


def refused(command: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(command)
    return str(caught.value).splitlines()


def pasted(lines: list[str]) -> str:
    return lines[lines.index("Together, to paste:") + 1].strip()


def values(config: Config) -> dict[str, object]:
    return {
        "samples_per_insert": config.replay.samples_per_insert,
        "target": config.learner.target_update_period_learner_steps,
        "batch": config.learner.batch_size,
        "capacity": config.replay.capacity,
        "start": config.replay.min_size_to_sample,
        "lr": config.learner.learning_rate,
        "decay": config.actors.epsilon_decay_env_steps,
        "epsilon": (config.actors.epsilon_schedule, config.actors.epsilon_end),
        "env_steps": config.run.max_env_steps,
        "sizes": list(config.network.hidden_sizes),
    }


def test_cleanrl_command_becomes_one_line_that_is_accepted_with_its_own_values():
    line = pasted(refused(CLEANRL))

    config = load(line.removeprefix("qfleet train "))

    assert line.startswith("qfleet train CartPole-v1 --run.max_env_steps 500000 --seed 3 ")
    assert values(config) == {
        "samples_per_insert": 12.8,  # one update of 128 every 10 env steps
        "target": 50,  # 500 env steps are 50 updates
        "batch": 128,
        "capacity": 10_000,
        "start": 10_000,
        "lr": 2.5e-4,
        "decay": 250_000,
        "epsilon": ("linear", 0.05),
        "env_steps": 500_000,
        "sizes": [64, 64],
    }
    assert (config.seed, config.run.schedule, config.learner.device) == (3, "lockstep", "auto")


def test_zoo_settings_in_a_file_become_one_line_of_yaml(tmp_path: Path):
    theirs = tmp_path / "zoo.yml"
    theirs.write_text(ZOO)
    ours = tmp_path / "ours.yaml"

    ours.write_text(pasted(refused(f"CartPole-v1 --config {theirs}")))

    assert values(load(f"CartPole-v1 --config {ours}")) == {
        "samples_per_insert": 32.0,  # 128 updates of 64 every 256 env steps
        "target": 5,  # 10 env steps are 5 updates
        "batch": 64,
        "capacity": 100_000,
        "start": 1_000,
        "lr": 2.3e-3,
        "decay": 8_000,
        "epsilon": ("linear", 0.04),
        "env_steps": 50_000,
        "sizes": [256, 256],
    }


def test_the_single_messages_say_the_same_numbers_as_the_line():
    lines = refused(CLEANRL)

    for part in (
        "--learner.target_update_period_learner_steps 50 (500 env steps there",
        "--replay.samples_per_insert 12.8 (1 update(s) of 128 every 10 env steps)",
        "--actors.epsilon_decay_env_steps 250000 (a fraction",
    ):
        assert sum(part in line for line in lines) == 1


def test_line_says_what_of_the_preset_remains():
    last = refused(CLEANRL)[-1]

    assert last == (
        "  From preset 'cartpole' remain: n-step returns (actors.n_step 5), double Q-learning "
        "(learner.double_q true), loss (learner.loss huber), optimizer (learner.optimizer sgd). "
        "Plain DQN of Stable-Baselines3 and CleanRL: --actors.n_step 1 --learner.double_q false "
        "--learner.optimizer adam, loss huber or mse"
    )


def test_line_does_not_say_remain_of_what_the_command_sets_itself():
    lines = refused("CartPole-v1 --lr 1e-3 --gamma 0.9 --actors.n_step 1 --learner.loss mse")

    assert "n-step" not in lines[-1]
    assert "loss (" not in lines[-1]
    assert pasted(lines) == (
        "qfleet train CartPole-v1 --actors.n_step 1 --learner.loss mse "
        "--learner.learning_rate 0.001 --actors.discount 0.9"
    )


def test_course_settings_become_a_line_that_is_accepted():
    line = pasted(refused("--memory_size 10000 --steps_per_episode 1000 --lr 1e-3 --eps 0.1"))

    config = load(line.removeprefix("qfleet train "))

    assert config.learner.updates_per_episode == 1000
    assert (config.actors.epsilon_schedule, config.actors.epsilon_end) == ("constant", 0.1)


@pytest.mark.parametrize(
    "command",
    [
        "--gamma 0.9",
        "--track --n-frames 4 --capture-video",
        "--gamma 0.9 --target-network-frequency x",
    ],
)
def test_no_line_where_fewer_than_two_settings_can_be_converted(command: str):
    assert "Together, to paste:" not in refused(command)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--track", "  track = true (--track): is not a qfleet key; trackers are not available"),
        (
            "--dueling",
            "  dueling = true (--dueling): is not a qfleet key; use --network.dueling true",
        ),
        (
            "--capture-video",
            "  capture_video = true (--capture-video): is not a qfleet key; use",
        ),
        ("--no-cuda", "  cuda = false (--no-cuda): is not a qfleet key; use --learner.device cpu"),
        ("--gamma", "  --gamma: is not a qfleet key; use --actors.discount VALUE"),
        ("--learner.double_q", "  --learner.double_q: needs a value; write --learner.double_q tr"),
        ("--seed", "  --seed: needs a value; write --seed VALUE"),
    ],
)
def test_flag_without_a_value_is_looked_up_before_a_value_is_asked_for(flag: str, line: str):
    for command in (flag, f"{flag} --seed 2", f"CartPole-v1 {flag} --device cpu"):
        assert refused(command)[1].startswith(line)
