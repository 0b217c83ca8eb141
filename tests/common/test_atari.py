"""Atari: one preprocessing for a single game and for many, real scores, lives and their ends."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from qfleet.common import atari
from qfleet.common.config import EnvConfig
from qfleet.common.envs import describe_environment, make_env
from qfleet.common.errors import ConfigError
from qfleet.common.vector_envs import has_native_vector, make_vector_env


def game(name: str, **changes: Any) -> EnvConfig:
    kwargs = {"repeat_action_probability": 0.0, **changes.pop("kwargs", {})}
    fields = {"frame_stack": 3, "frame_size": 84, **changes}
    return EnvConfig(id=f"ALE/{name}-v5", observation="pixels", kwargs=kwargs, **fields)


@pytest.fixture
def without_noops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "MAX_NOOPS", 0)


@pytest.mark.usefixtures("without_noops")
@pytest.mark.parametrize(("name", "size"), [("Breakout", 84), ("SpaceInvaders", 50)])
def test_vector_shows_the_stacks_of_a_single_game_pixel_for_pixel(name, size):
    config = game(name, frame_size=size)
    single, vector = make_env(config), make_vector_env(config, 2)
    stack, _ = single.reset(seed=3)
    np.testing.assert_array_equal(vector.reset(seed=3)[0], stack)
    np.testing.assert_array_equal(stack[0], stack[2])  # not zeros, as ale-py's own stacks begin
    assert stack.any()
    rng, ends, rewarded = np.random.default_rng(1), 0, 0.0
    for _ in range(700):
        action = rng.integers(vector.n_actions, dtype=np.int32)
        result = vector.step(np.array([action, 0], dtype=np.int32))
        stack, reward, terminated, truncated, _ = single.step(action)
        np.testing.assert_array_equal(result.next_observations[0], stack)
        assert (result.rewards[0], result.terminated[0]) == (reward, terminated)
        assert not result.truncated[0]
        assert not truncated
        rewarded += reward
        if terminated:
            ends += 1
            np.testing.assert_array_equal(result.observations[0], single.reset()[0])
        np.testing.assert_array_equal(vector.observations[0], result.observations[0])
    assert ends >= 1
    assert rewarded > 1.0


@pytest.mark.usefixtures("without_noops")
def test_games_show_the_rows_that_are_asked_for_inverted():
    part = {"frame_rows": (30, 70), "frame_inverted": True}
    whole = make_env(game("Pong")).reset(seed=3)[0]

    assert whole.min() < whole.max()
    np.testing.assert_array_equal(
        make_env(game("Pong", **part)).reset(seed=3)[0], 255 - whole[:, 30:70]
    )
    vector = make_vector_env(game("Pong", **part), 2)
    np.testing.assert_array_equal(vector.reset(seed=3)[0], 255 - whole[:, 30:70])
    assert vector.step(np.zeros(2, dtype=np.int32)).observations.shape == (2, 3, 40, 84)


@pytest.mark.usefixtures("without_noops")
def test_vector_tells_of_lives_lost_and_not_of_a_games_last():
    vector = make_vector_env(game("Breakout"), 1)
    vector.reset(seed=5)
    lost, ended = 0, 0
    rng = np.random.default_rng(2)
    while not ended:
        result = vector.step(rng.integers(4, size=1, dtype=np.int32))
        lost += int(result.life_lost[0])
        ended += int(result.terminated[0])
    assert lost == 4  # of five


def test_games_are_truncated_after_the_limit_in_steps():
    config = game("Pong")
    vector = make_vector_env(config, 1, max_episode_steps=7)
    single = make_env(config, max_episode_steps=7)
    vector.reset(seed=1)
    single.reset(seed=1)

    ends = [
        (bool(vector.step(np.zeros(1, dtype=np.int32)).truncated[0]), bool(single.step(0)[3]))
        for _ in range(7)
    ]

    assert ends == [(False, False)] * 6 + [(True, True)]


def test_vector_takes_any_seed_and_its_games_differ():
    vector = make_vector_env(game("Pong"), 3)
    first = vector.reset(seed=2**62 + 1)
    for _ in range(12):
        result = vector.step(np.full(3, 2, dtype=np.int32))

    np.testing.assert_array_equal(make_vector_env(game("Pong"), 3).reset(seed=2**62 + 1), first)
    assert len({frames.tobytes() for frames in result.observations}) > 1  # by their no-ops


@pytest.mark.usefixtures("without_noops")
@pytest.mark.parametrize(
    ("kwargs", "alike"), [({}, False), ({"repeat_action_probability": 0}, True)]
)
def test_vector_repeats_actions_as_often_as_the_id_or_its_kwargs_say(kwargs, alike):
    """Without no-ops nothing else is drawn in Pong: games that play alike show the same."""
    vector = make_vector_env(
        EnvConfig(id="ALE/Pong-v5", observation="pixels", kwargs=kwargs, frame_size=84), 4
    )
    vector.reset(seed=1)
    for step in range(120):
        result = vector.step(np.full(4, (2, 3)[step // 3 % 2], dtype=np.int32))

    assert (len({frames.tobytes() for frames in result.observations}) == 1) is alike


def test_describe_environment_is_a_stack_of_frames_and_evaluates_single_games():
    config = EnvConfig(id="ale_py:ALE/Pong-v5", observation="pixels")

    spec = describe_environment(config)

    assert (spec.observation_shape, spec.observation_dtype) == ((4, 84, 84), "|u1")
    assert (spec.n_actions, spec.frame_stack, spec.max_episode_steps) == (6, 4, None)
    assert not has_native_vector(config)


def test_other_arguments_than_the_vectors_are_played_one_by_one():
    config = game("Pong", kwargs={"mode": 1})
    assert not atari.has_vector(config)

    vector = make_vector_env(config, 2)
    vector.reset(seed=1)

    assert vector.step(np.zeros(2, dtype=np.int32)).life_lost is None
    assert atari.has_vector(game("Pong"))


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (
            EnvConfig(id="ALE/Pong-v5", observation="pixels"),
            "4 frames a step, sticky actions (0.25), 0 to 30 no-ops at the start",
        ),
        (
            game("Breakout", episodic_life=True, kwargs={"frameskip": 2}),
            "2 frames a step, no sticky actions, 0 to 30 no-ops at the start, lost lives end "
            "episodes for the learner",
        ),
        (EnvConfig(id="CartPole-v1", observation="pixels"), None),
    ],
)
def test_play_note_table(config, note):
    assert atari.play_note(config) == note


def test_a_step_lasts_as_long_as_its_frames_when_it_is_shown():
    env = make_env(game("Pong"), "rgb_array")
    env.reset(seed=1)

    assert (
        env.metadata["render_fps"]
        == gymnasium.spec("ALE/Pong-v5").make().metadata["render_fps"] / 4
    )
    assert env.render().shape == (210, 160, 3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EnvConfig(episodic_life=True), r"env\.episodic_life is for Atari's games observed as pix"),
        (game("Pong", episodic_life=True, kwargs={"mode": 1}), r"env\.episodic_life .* is none"),
        (game("Pong", kwargs={"speed": 2}), r"env\.kwargs=.* do not fit env\.id='ALE/Pong-v5'"),
        (game("Pongg"), r"env\.id='ALE/Pongg-v5' is not registered"),
    ],
)
def test_make_env_refuses_what_atari_cannot_play(config, words):
    with pytest.raises(ConfigError, match=words):
        make_env(config)


def test_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)

    with pytest.raises(ConfigError, match=r"ALE/Pong-v5 needs .* pip install 'qfleet\[atari\]'$"):
        make_env(game("Pong"))
