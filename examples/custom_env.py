"""An environment of your own in twenty lines: walk right to the end of a corridor.

    qfleet train --env.factory examples.custom_env:corridor --eval.solved_at_return -10

The factory is called as `corridor(**env.kwargs, render_mode=None)` in every process; it returns a
`gymnasium.Env` with a discrete action space, wrappers included.
"""

import gymnasium
import numpy as np
from gymnasium import spaces


class Corridor(gymnasium.Env):
    """Observation `float32 [1]`: the place, 0 to 1. Actions: 0 left, 1 right. A step costs 1."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        """Back to the left end."""
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        """One place to the left or right; the right end terminates."""
        self.place = max(0, self.place + 2 * int(action) - 1)
        observation = np.array([self.place / self.length], np.float32)
        return observation, -1.0, self.place == self.length, False, {}

    def render(self):
        """`uint8 [20, 20·(length + 1), 3]`; only `qfleet play` and the video need it."""
        picture = np.full((20, 20 * (self.length + 1), 3), 255, np.uint8)
        picture[:, 20 * self.place : 20 * (self.place + 1)] = 0
        return picture


def corridor(length=10, render_mode=None):
    """The factory: at most 100 steps, and the best return is −`length`."""
    return gymnasium.wrappers.TimeLimit(Corridor(length), 100)
