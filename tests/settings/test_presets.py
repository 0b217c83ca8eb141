"""The shipped presets: they load, they are valid, and they say what they promise."""

from __future__ import annotations

import pytest

from qfleet.common.errors import ConfigError
from qfleet.settings import presets
from qfleet.settings.config_loading import load_config


def load(name):
    names_none = name in presets.WITHOUT_ENVIRONMENT
    return load_config(name, overrides={"env.id": "Acrobot-v1"} if names_none else {})


def test_names_default_first():
    assert presets.names() == (
        "cartpole",
        "acrobot",
        "apex",
        "atari",
        "cartpole-pixels",
        "generic",
        "generic-pixels",
        "lunarlander",
        "minatar",
        "minatar-breakout",
        "minatar-space-invaders",
        "mountaincar",
        "rainbow",
        "tutorial-pixels",
        "tutorial-state",
    )


@pytest.mark.parametrize("name", presets.names())
def test_preset_is_valid_and_starts_with_a_comment(name):
    assert presets.read(name).startswith("# ")
    assert load(name).preset_name == name


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("CartPole-v1", "cartpole"),
        ("LunarLander-v3", "lunarlander"),
        ("ALE/Pong-v5", "atari"),
        ("ale_py:ALE/Pong-v5", "atari"),
        ("MinAtar/Breakout-v0", "minatar-breakout"),
        ("minatar:MinAtar/SpaceInvaders-v0", "minatar-space-invaders"),
        ("MinAtar/SpaceInvaders-v1", "minatar"),
        ("MinAtar/Seaquest-v0", "minatar"),
        ("Acrobot-v1", "acrobot"),
        ("MountainCar-v0", "mountaincar"),
        ("MountainCarContinuous-v0", None),
        ("FrozenLake-v1", None),
        ("cartpole", None),
    ],
)
def test_preset_for_env_table(env_id, expected):
    assert presets.preset_for_env(env_id) == expected


def test_load_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        presets.load("cartpol")

    assert str(caught.value) == (
        "preset = cartpol: there is no such preset; did you mean cartpole?; "
        f"presets are {', '.join(presets.names())}"
    )


def test_load_refuses_names_that_leave_the_folder():
    with pytest.raises(ConfigError):
        presets.load("../preset_files/cartpole")


def test_generic_names_no_environment():
    assert "env" not in presets.load("generic")


def test_tutorial_state_is_the_courses_program():
    config = load("tutorial-state")

    assert config.network.hidden_sizes == (128, 64)
    assert config.network.normalization == "batch"
    assert (config.actors.count, config.actors.envs_per_actor, config.actors.n_step) == (1, 1, 1)
    assert config.actors.discount == 0.99
    assert (config.replay.capacity, config.replay.sampling) == (10_000, "uniform")
    assert (config.replay.min_size_to_sample, config.replay.samples_per_insert) == (1, None)
    learner = config.learner
    assert (learner.optimizer, learner.learning_rate, learner.momentum) == ("sgd", 1e-3, 0.9)
    assert (learner.batch_size, learner.updates_per_episode, learner.loss) == (32, 1000, "mse")
    assert (learner.double_q, learner.max_grad_norm) == (False, None)


def test_both_of_the_courses_programs_have_the_authors_schedules():
    """What the text leaves open: ε by episode, the target every fifth one, 200 episodes."""
    for config in (load("tutorial-state"), load("tutorial-pixels")):
        actors = config.actors
        assert (actors.epsilon_schedule, actors.epsilon_decay_episodes) == ("linear", 200)
        assert (actors.epsilon_start, actors.epsilon_end) == (1.0, 0.005)
        assert config.learner.target_update_period_learner_steps == 5_000
        assert config.run.max_episodes == 200


def test_tutorial_pixels_is_the_courses_second_program():
    config = load("tutorial-pixels")

    env = config.env
    assert (env.observation, env.renderer) == ("pixels", "gymnasium")
    assert (env.frame_stack, env.frame_size) == (8, 84)
    network = config.network
    assert (network.kind, network.hidden_sizes, network.normalization) == (
        "convnet",
        (512,),
        "batch",
    )
    actors = config.actors
    assert (actors.count, actors.envs_per_actor, actors.n_step) == (1, 1, 1)
    assert (config.replay.capacity, config.replay.sampling) == (10_000, "uniform")
    learner = config.learner
    assert (learner.optimizer, learner.learning_rate, learner.momentum) == ("sgd", 1e-3, 0.9)
    assert (learner.batch_size, learner.updates_per_episode, learner.loss) == (32, 1000, "huber")
    assert (learner.double_q, learner.max_grad_norm) == (False, None)


def test_generic_pixels_names_no_environment():
    assert "id" not in presets.load("generic-pixels")["env"]


@pytest.mark.parametrize(
    ("name", "env_id", "score"),
    [("minatar-breakout", "MinAtar/Breakout-v0", 10), ("minatar-space-invaders", None, 44)],
)
def test_minatar_presets_are_the_papers_network_and_score(name, env_id, score):
    config = load(name)

    assert config.env.id == (env_id or "MinAtar/SpaceInvaders-v0")
    assert (config.env.observation, config.network.kind) == ("planes", "minatar")
    assert (config.network.hidden_sizes, config.network.normalization) == ((128,), "none")
    assert (config.eval.solved_at_return, config.eval.epsilon) == (score, 0.0)
    assert config.run.max_env_steps == 2_000_000


def test_atari_is_the_2015_papers_network_and_preprocessing():
    config = load("atari")

    env = config.env
    assert (env.observation, env.frame_stack, env.frame_size) == ("pixels", 4, 84)
    assert (config.network.kind, config.network.hidden_sizes) == ("nature", (512,))
    assert (config.actors.max_abs_reward, env.episodic_life) == (1.0, False)
    assert (config.replay.samples_per_insert, config.learner.batch_size) == (8, 32)
    assert "id" not in presets.load("atari")["env"]


def test_minatar_presets_differ_in_game_and_score_alone():
    family, breakout, invaders = (
        presets.load(name) for name in ("minatar", "minatar-breakout", "minatar-space-invaders")
    )

    for preset in (breakout, invaders):
        del preset["env"]["id"], preset["eval"]["solved_at_return"]
    assert family == breakout == invaders


def test_cartpole_has_a_budget_of_its_own_and_generic_another():
    assert load("cartpole").run.max_learner_steps == 60_000
    assert load("generic").run.max_env_steps == 500_000
    assert load("generic").run.max_learner_steps is None
