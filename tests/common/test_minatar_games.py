"""MinAtar's games: the package's own, step for step, with neither pyplot nor pandas behind them."""

from __future__ import annotations

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest

from qfleet.common import minatar_games
from qfleet.common.config import EnvConfig
from qfleet.common.envs import describe_environment, make_env
from qfleet.common.errors import ConfigError, EnvironmentFailedError
from qfleet.common.optional_games import bare_id, namespace, register_games
from qfleet.common.vector_envs import make_vector_env


def planes(env_id: str, **kwargs: object) -> EnvConfig:
    return EnvConfig(id=env_id, observation="planes", kwargs=kwargs)


@pytest.mark.parametrize("game", minatar_games.GAMES)
def test_minatar_game_is_the_packages_own(game):
    from minatar import Environment

    theirs = Environment(game)
    theirs.seed(5)
    theirs.reset()
    ours = minatar_games.MinAtarGame(game)
    state, _ = ours.reset(seed=5)
    np.testing.assert_array_equal(state, theirs.state())
    ends = 0
    for action in np.random.default_rng(3).integers(minatar_games.N_ACTIONS, size=400):
        reward, is_over = theirs.act(int(action))
        state, our_reward, terminated, truncated, _ = ours.step(action)
        np.testing.assert_array_equal(state, theirs.state())
        assert (our_reward, terminated, truncated) == (reward, is_over, False)
        if is_over:
            ends += 1
            theirs.reset()
            state, _ = ours.reset()
            np.testing.assert_array_equal(state, theirs.state())
    assert ends >= (0 if game == "freeway" else 1)


@pytest.mark.parametrize(
    ("env_id", "shape", "n_actions"),
    [
        ("MinAtar/Breakout-v0", (4, 10, 10), 6),
        ("MinAtar/Breakout-v1", (4, 10, 10), 3),
        ("MinAtar/SpaceInvaders-v0", (6, 10, 10), 6),
        ("MinAtar/SpaceInvaders-v1", (6, 10, 10), 4),
        ("MinAtar/Asterix-v0", (4, 10, 10), 6),
        ("MinAtar/Freeway-v1", (7, 10, 10), 3),
        ("MinAtar/Seaquest-v0", (10, 10, 10), 6),
    ],
)
def test_describe_environment_minatar_table(env_id, shape, n_actions):
    spec = describe_environment(planes(env_id))

    assert (spec.observation_shape, spec.observation_dtype) == (shape, "|u1")
    assert (spec.n_actions, spec.n_inputs, spec.frame_stack) == (n_actions, shape[0], None)
    assert (spec.reward_threshold, spec.max_episode_steps) == (None, None)


def test_make_env_loads_a_game_without_its_package(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "minatar"]:
        monkeypatch.delitem(sys.modules, name)

    env = make_env(planes("MinAtar/Asterix-v0"))
    env.reset(seed=1)

    assert "minatar" not in sys.modules


def test_planes_are_channels_first_copies_of_the_grid():
    env = make_env(planes("MinAtar/Breakout-v0"))
    observation, _ = env.reset(seed=2)
    kept = observation.copy()
    game = env.unwrapped

    np.testing.assert_array_equal(observation, np.moveaxis(game._game.state(), -1, 0))
    assert observation.dtype == np.uint8
    assert observation.flags.c_contiguous
    assert env.observation_space.contains(observation)
    env.step(1)
    np.testing.assert_array_equal(observation, kept)


def test_vector_env_gives_the_final_planes_of_an_episode():
    config = planes("MinAtar/Breakout-v0", sticky_action_prob=0.0)
    vector, single = make_vector_env(config, 1), make_env(config)
    vector.reset(seed=9)
    single.reset(seed=9)
    for _ in range(100):
        result = vector.step(np.zeros(1, dtype=np.int32))
        successor, _, terminated, _, _ = single.step(0)
        np.testing.assert_array_equal(result.next_observations[0], successor)
        if terminated:
            break
    assert result.terminated[0]
    np.testing.assert_array_equal(result.observations[0], single.reset()[0])
    assert not np.array_equal(result.observations[0], result.next_observations[0])


def test_sticky_actions_repeat_the_one_before():
    game = minatar_games.MinAtarGame("breakout", sticky_action_prob=1.0)
    game.reset(seed=1)
    paddle = game._game.pos

    game.step(1)

    assert game._game.pos == paddle  # the action before the first is to do nothing


def test_render_shows_each_plane_in_its_colour():
    game = minatar_games.MinAtarGame("breakout", render_mode="rgb_array")
    game.reset(seed=1)

    picture = game.render()

    assert (picture.shape, picture.dtype) == ((10, 10, 3), np.uint8)
    assert tuple(picture[9, 4]) == minatar_games._COLOURS[0]  # the paddle
    assert {tuple(pixel) for pixel in picture[2]} == {minatar_games._COLOURS[3]}  # bricks
    assert tuple(picture[8, 4]) == minatar_games._BLACK


def test_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "minatar" else found(name)
    )
    for env_id in [env_id for env_id in gymnasium.registry if env_id.startswith("MinAtar/")]:
        monkeypatch.delitem(gymnasium.registry, env_id)

    with pytest.raises(ConfigError) as caught:
        make_env(planes("MinAtar/Breakout-v0"))

    assert str(caught.value) == (
        "MinAtar/Breakout-v0 needs an optional package (No module named 'minatar'): "
        "pip install 'qfleet[minatar]'"
    )


@pytest.mark.parametrize(
    ("env_id", "bare", "space"),
    [
        ("MinAtar/Breakout-v0", "MinAtar/Breakout-v0", "MinAtar"),
        ("minatar:MinAtar/Breakout-v0", "MinAtar/Breakout-v0", "MinAtar"),
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5", "ALE"),
        ("ALE/Pong-v5", "ALE/Pong-v5", "ALE"),
        ("CartPole-v1", "CartPole-v1", None),
        ("mine:ALE/Pong-v5", "mine:ALE/Pong-v5", None),
        ("phys2d/CartPole-v0", "phys2d/CartPole-v0", None),
    ],
)
def test_bare_id_and_namespace_table(env_id, bare, space):
    assert (bare_id(env_id), namespace(env_id)) == (bare, space)


def test_register_games_leaves_other_ids_alone():
    before = len(gymnasium.registry)
    register_games("CartPole-v1")
    assert len(gymnasium.registry) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EnvConfig(id="CartPole-v1", observation="planes"), r"grids \[H, W, C\] of bool or uint8"),
        (planes("MinAtar/Breakout-v7"), r"env\.id='MinAtar/Breakout-v7' is not registered"),
        (planes("MinAtar/Breakout-v0", speed=3), r"env\.kwargs={'speed': 3} do not fit"),
    ],
)
def test_make_env_refuses_what_has_no_planes(config, words):
    with pytest.raises(ConfigError, match=words):
        make_env(config)


def test_planes_of_another_shape_are_the_environments_mistake():
    env = make_env(planes("MinAtar/Breakout-v0"))
    env.unwrapped._game.state = lambda: np.zeros((10, 9, 4), dtype=bool)

    with pytest.raises(EnvironmentFailedError, match=r"bool or uint8 \[10, 10, 4\]"):
        env.reset(seed=1)
