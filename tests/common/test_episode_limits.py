import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from qfleet.common.config import EnvConfig
from qfleet.common.envs import describe_environment, make_env
from qfleet.common.episode_limits import (
    ATARI_EPISODE_LIMIT,
    DEFAULT_EPISODE_LIMIT,
    cuts_episodes,
    episode_limit,
    own_limit,
    restore_elapsed_steps,
    time_limits,
    with_limit,
)
from qfleet.common.types import EnvironmentSpec
from qfleet.common.vector_envs import make_vector_env


class Endless(gymnasium.Env):
    """Counts its steps and never ends."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._steps += 1
        return np.full(1, self._steps, np.float32), 1.0, False, False, {}

    def capture(self):
        return {"steps": self._steps}

    def restore(self, state):
        self._steps = state["steps"]


def limited_to_six(render_mode=None):
    return TimeLimit(Endless(), 6)


ENDLESS = EnvConfig(factory=f"{__name__}:Endless")
LIMITED = EnvConfig(factory=f"{__name__}:limited_to_six")


def _spec(env_id, own):
    return EnvironmentSpec(env_id, (4,), "<f4", 2, None, own)


@pytest.mark.parametrize(
    ("env_id", "own", "expected"),
    [
        ("CartPole-v1", 500, 500),
        ("my_env:make", 200_000, 200_000),
        ("CliffWalking-v1", None, DEFAULT_EPISODE_LIMIT),
        ("ALE/Pong-v5", None, ATARI_EPISODE_LIMIT),
    ],
)
def test_episode_limit_is_the_environments_own_or_a_default(env_id, own, expected):
    assert episode_limit(_spec(env_id, own)) == expected


@pytest.mark.parametrize(
    ("own", "limit", "expected"),
    [(500, 500, False), (500, 501, False), (500, 499, True), (None, 10_000, True)],
)
def test_cuts_episodes_only_below_the_environments_own_limit(own, limit, expected):
    assert cuts_episodes(_spec("E-v0", own), limit) is expected


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (EnvConfig(), 500),
        (EnvConfig(kwargs={"max_episode_steps": 30}), 30),
        (EnvConfig(id="CliffWalking-v1"), None),
        (ENDLESS, None),
        (LIMITED, 6),
    ],
)
def test_own_limit_is_found_in_spec_and_wrappers(config, own):
    assert describe_environment(config).max_episode_steps == own
    assert own_limit(make_env(config)) == own


@pytest.mark.parametrize(("limit", "n_limits"), [(None, 1), (6, 1), (7, 1), (5, 2)])
def test_with_limit_adds_one_only_where_it_cuts(limit, n_limits):
    assert len(time_limits(with_limit(limited_to_six(), limit))) == n_limits


@pytest.mark.parametrize(
    ("config", "limit", "expected"), [(ENDLESS, 4, 4), (LIMITED, 4, 4), (LIMITED, 100, 6)]
)
def test_vector_environment_truncates_and_hands_out_the_final_observation(config, limit, expected):
    env = make_vector_env(config, 2, max_episode_steps=limit)
    env.reset(0)

    for step in range(1, 2 * expected + 1):
        result = env.step(np.zeros(2, np.int32))
        ends = step % expected == 0
        assert result.truncated.tolist() == [ends, ends]
        assert result.terminated.tolist() == [False, False]
        counted = (step - 1) % expected + 1
        assert result.next_observations.tolist() == [[counted], [counted]]


@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (500, None), (900, None)])
def test_native_cartpole_is_cut_below_its_own_limit_only(limit, expected):
    env = make_vector_env(EnvConfig(), 1, max_episode_steps=limit)
    env.reset(0)

    truncated_at = None
    for step in range(1, 9):
        result = env.step(np.array([step % 2]))
        if result.truncated[0] and truncated_at is None:
            truncated_at = step

    assert truncated_at == expected


@pytest.mark.parametrize(
    ("before", "after", "remaining"), [(9, 9, 5), (9, 12, 8), (9, None, 100), (None, 9, 9)]
)
def test_captured_environment_goes_on_under_a_limit_that_came_changed_or_went(
    before, after, remaining
):
    env = make_vector_env(ENDLESS, 1, max_episode_steps=before)
    env.reset(0)
    for _ in range(4):
        env.step(np.zeros(1, np.int32))
    copy = make_vector_env(ENDLESS, 1, max_episode_steps=after)

    copy.restore(env.capture())
    steps = [copy.step(np.zeros(1, np.int32)) for _ in range(100)]

    assert steps[0].next_observations.tolist() == [[5.0]]
    ends = [n for n, result in enumerate(steps, start=1) if result.truncated[0]]
    assert (ends[0] if ends else 100) == remaining


def test_restored_counts_keep_their_order():
    env = with_limit(limited_to_six(), 5)
    env.reset()

    restore_elapsed_steps(env, [3, 4])
    assert [limit._elapsed_steps for limit in time_limits(env)] == [3, 4]
    restore_elapsed_steps(env, [2])
    assert [limit._elapsed_steps for limit in time_limits(env)] == [2, 2]
