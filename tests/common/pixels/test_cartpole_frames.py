"""The fast CartPole renderer against Gymnasium's own pixels, state by state."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.cartpole_frames import CartPoleFrames
from qfleet.common.pixels.gray_frames import gray_frame
from qfleet.common.types import Array

TILT_BEYOND_ANY_EPISODE = 0.3
"""An episode ends at 0.2095 rad; its last step may go past that."""


def states_of(positions: Array, tilts: Array) -> Array:
    states = np.zeros((len(positions), 4))
    states[:, 0], states[:, 2] = positions, tilts
    return states


def gymnasium_frames(states: Array, size_px: int) -> Array:
    env: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for state in states:
        env.unwrapped.state = state
        frames.append(gray_frame(env.render(), size_px))
    env.close()
    return np.stack(frames)


def random_states(n: int, reach: float) -> Array:
    rng = np.random.default_rng(5)
    return states_of(
        rng.uniform(-reach, reach, n),
        rng.uniform(-TILT_BEYOND_ANY_EPISODE, TILT_BEYOND_ANY_EPISODE, n),
    )


def edge_states() -> Array:
    """Upright, and at and past both ends of the track, where parts are off the screen."""
    rng = np.random.default_rng(6)
    upright = states_of(np.linspace(-2.4, 2.4, 101), np.zeros(101))
    barely = states_of(np.linspace(-1.0, 1.0, 20), np.linspace(-3e-6, 3e-6, 20))
    ends = np.concatenate([np.linspace(-2.75, -2.1, 100), np.linspace(2.1, 2.75, 100)])
    return np.concatenate([upright, barely, states_of(ends, rng.uniform(-0.25, 0.25, 200))])


def test_frames_are_gymnasiums_within_two_levels() -> None:
    states = np.concatenate([random_states(2_500, 2.4), edge_states()])
    theirs = gymnasium_frames(states, 84).astype(np.int64)

    ours = CartPoleFrames(84).frames(states)

    assert ours.dtype == np.uint8
    difference = np.abs(ours - theirs)
    assert np.mean(difference <= 2) >= 0.999
    assert difference[theirs < 255].mean() <= 2.0
    # Lines that leave the screen are clipped before they are drawn; nothing else differs so much.
    assert difference.max() <= 16


def test_frames_away_from_the_ends_differ_by_rounding_only() -> None:
    states = random_states(500, 1.9)

    difference = np.abs(
        CartPoleFrames(84).frames(states).astype(np.int64) - gymnasium_frames(states, 84)
    )

    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.001


@pytest.mark.parametrize("size_px", [1, 42, 96])
def test_frames_of_other_sizes(size_px: int) -> None:
    states = random_states(60, 1.9)

    difference = np.abs(
        CartPoleFrames(size_px).frames(states).astype(np.int64) - gymnasium_frames(states, size_px)
    )

    assert difference.max() <= 1


def test_frames_move_with_the_cart_and_the_pole() -> None:
    """Half a metre per second moves a pixel by 0.07 between two frames: it must be seen."""
    start, moved, tilted = states_of(np.array([0.0, 0.01, 0.0]), np.array([0.0, 0.0, 0.01]))

    frames = CartPoleFrames(84).frames(np.stack([start, moved, tilted]))

    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_frames_do_not_depend_on_what_was_drawn_before() -> None:
    states = random_states(300, 2.6)
    together = CartPoleFrames(84)
    together.frames(states[::-1])

    again = together.frames(states)

    alone = np.concatenate([CartPoleFrames(84).frames(state[None]) for state in states[::50]])
    np.testing.assert_array_equal(again[::50], alone)


def test_shapes_are_forgotten_when_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from qfleet.common.pixels import cartpole_frames

    states = random_states(200, 2.4)
    expected = CartPoleFrames(84).frames(states)
    monkeypatch.setattr(cartpole_frames, "_MOST_SHAPES", 3)
    renderer = CartPoleFrames(84)

    np.testing.assert_array_equal(renderer.frames(states), expected)
    assert len(renderer._shapes) <= 3


def test_a_pole_lying_down_is_refused() -> None:
    with pytest.raises(InvariantError, match=r"tilted by 0\.9 rad"):
        CartPoleFrames(84).frames(states_of(np.zeros(1), np.array([0.9])))
