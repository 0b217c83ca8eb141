"""The panel beside a game: bars as long as their values, pictures as the network gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from qfleet.common.config import EnvConfig
from qfleet.common.envs import make_env
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.pictures import agent_view
from qfleet.pictures.agent_view import AgentView, action_names
from qfleet.pictures.recording import read_frames, record_play

FRAMES = EnvironmentSpec("Game-v0", (3, 20, 20), "|u1", 3, None, None, frame_stack=3)
PLANES = EnvironmentSpec("Grid-v0", (2, 10, 10), "|u1", 2, None, None)
ROOM = agent_view.WIDTH_PIXELS - agent_view._LABEL_WIDTH - agent_view._VALUE_WIDTH - 8
"""Pixels of the longest bar."""
STATE = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


def view(spec: EnvironmentSpec, *q_values: list[float], **others: Any) -> AgentView:
    answers = iter([np.array([row], np.float32) for row in q_values])
    return AgentView(lambda _: next(answers), spec, **others)


def bars_of(panel: Array, n_actions: int) -> list[tuple[int, bool]]:
    """Length of each action's bar in pixels, and whether it has the colour of the chosen one."""
    found = []
    for action in range(n_actions):
        middle = agent_view._TITLE_HEIGHT + agent_view._ROW_HEIGHT * action + 4
        row = panel[middle, agent_view._LABEL_WIDTH : agent_view._LABEL_WIDTH + ROOM]
        drawn = (row != agent_view._DARK).any(axis=1)
        found.append((int(drawn.sum()), tuple(row[0]) == agent_view._CHOSEN))
    return found


def test_bars_stand_between_the_lowest_and_the_highest_value_and_show_the_best():
    panel = view(FRAMES, [1.0, 3.0, 2.0]).panel(np.zeros((3, 20, 20), np.uint8), 400)

    assert panel.shape == (400, agent_view.WIDTH_PIXELS, 3)
    assert bars_of(panel, 3) == [(2, False), (ROOM, True), (2 + (ROOM - 2) // 2, False)]


def test_bars_keep_one_scale_for_a_whole_film():
    shown = view(STATE, [0.0, 4.0], [1.0, 2.0], [8.0, 0.0])
    panels = [shown.panel(np.zeros(4, np.float32), 400) for _ in range(3)]
    lengths = [[length for length, _ in bars_of(panel, 2)] for panel in panels]
    full = lengths[0][1]

    assert lengths[0] == [2, full]
    assert lengths[1] == [2 + round((full - 2) / 4), 2 + (full - 2) // 2]
    assert lengths[2] == [full, 2]


def test_frames_are_shown_as_they_are_in_their_order():
    stack = np.stack([np.full((20, 20), level, np.uint8) for level in (60, 140, 220)])

    panel = view(FRAMES, [0.0, 0.0, 1.0]).panel(stack, 400)[108:]

    levels, counts = np.unique(panel[panel.min(axis=2) == panel.max(axis=2)], return_counts=True)
    areas = dict(zip(levels.tolist(), counts.tolist(), strict=True))
    assert areas[60] == areas[140] == areas[220] > 3 * 60 * 60
    middles = [np.argwhere((panel == level).all(axis=2)).mean(axis=0) for level in (60, 140, 220)]
    assert middles[0][1] < middles[1][1] or middles[0][0] < middles[1][0]
    assert middles[1][0] < middles[2][0] or middles[1][1] < middles[2][1]


def test_planes_of_ones_are_white_and_a_state_is_written_out():
    grid = np.zeros((2, 10, 10), np.uint8)
    grid[1, :, :5] = 1
    white = (view(PLANES, [0.0, 1.0]).panel(grid, 300)[90:] == 255).all(axis=2)
    empty = view(STATE, [0.0, 1.0]).panel(np.zeros(4, np.float32), 300)
    other = view(STATE, [0.0, 1.0]).panel(np.array([1, 0, 0, 0], np.float32), 300)

    assert white.sum() > 40 * 40
    assert (empty != other).any(axis=2).sum() > 5


@pytest.mark.parametrize(("height", "n_actions"), [(60, 18), (500, 2)])
def test_beside_pads_the_lower_of_the_two(height, n_actions):
    spec = EnvironmentSpec("Game-v0", (3, 20, 20), "|u1", n_actions, None, None, frame_stack=3)
    picture = np.full((height, 100, 3), 200, np.uint8)

    both = view(spec, list(map(float, range(n_actions)))).beside(
        picture, np.zeros((3, 20, 20), np.uint8)
    )

    assert both.shape[1] == 100 + agent_view.WIDTH_PIXELS
    assert both.shape[0] >= max(height, 18 * n_actions)
    np.testing.assert_array_equal(both[:height, :100], picture)
    assert (both[height:, :100] == agent_view._DARK).all()


def test_action_names_are_the_environments():
    assert action_names(gymnasium.make("CartPole-v1")) is None
    grid = make_env(EnvConfig(id="MinAtar/Breakout-v1", observation="planes"))
    assert action_names(grid) == ["noop", "left", "right"]
    pong = make_env(EnvConfig(id="ALE/Pong-v5", observation="pixels"))
    assert action_names(pong) == ["noop", "fire", "right", "left", "rightfire", "leftfire"]


def test_record_play_films_the_panel_beside_the_game(tmp_path: Path):
    env = make_env(EnvConfig(id="MinAtar/Breakout-v0", observation="planes"), "rgb_array")
    spec = EnvironmentSpec("MinAtar/Breakout-v0", (4, 10, 10), "|u1", 6, None, None)
    shown = AgentView(lambda observation: np.arange(6.0)[None], spec, action_names(env))

    made = record_play(lambda _: 0, env, tmp_path / "x.webp", episodes=1, seed=1, view=shown)

    frames = read_frames(made.path)
    assert made.frames == len(frames) > 3
    # An animation is at most 400 pixels wide, and the panel its right part.
    panel = frames[0][:, 400 * 320 // (320 + agent_view.WIDTH_PIXELS) :]
    orange = (np.abs(panel.astype(int) - agent_view._CHOSEN).max(axis=2) < 60).sum()
    assert orange > 100
