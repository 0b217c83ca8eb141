import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from qfleet.actors.evaluator import Evaluator, evaluate
from qfleet.common import seeding
from qfleet.common.config import EnvConfig
from qfleet.common.envs import make_env


class Balancing:
    """A feedback rule that keeps CartPole up for a long time, as a QFunction."""

    def q_values(self, observations):
        push_right = observations @ np.array([0.02, 0.05, 1.0, 0.5], np.float32) > 0
        return np.stack([~push_right, push_right], axis=1).astype(np.float32)


class AlwaysRight:
    def __init__(self):
        self.batches = []

    def q_values(self, observations):
        self.batches.append(len(observations))
        return np.tile(np.array([[0.0, 1.0]], np.float32), (len(observations), 1))


class Countdown(gymnasium.Env):
    """Lasts as long as its seed drew (1 to 20 steps); action 1 earns 2, action 0 earns 1."""

    observation_space = spaces.Box(0, 20, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self._left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 21))
        return np.array([self._left], np.float32), {}

    def step(self, action):
        self._left -= 1
        reward = 2.0 if action else 1.0
        return np.array([self._left], np.float32), reward, self._left == 0, False, {}


def limited_countdown(render_mode=None):
    return TimeLimit(Countdown(), 15)


CARTPOLE = EnvConfig()
COUNTDOWN = EnvConfig(factory=f"{__name__}:limited_countdown")


def _countdown_lengths(n_episodes, seed):
    env = make_env(COUNTDOWN)
    return [
        min(15, int(env.reset(seed=seeding.seed_int(seed, "eval.episode", i))[0][0]))
        for i in range(n_episodes)
    ]


@pytest.mark.parametrize("max_envs", [1, 3, 16, 64])
def test_evaluate_singles_is_independent_of_concurrency(max_envs):
    evaluator = Evaluator(COUNTDOWN, max_envs=max_envs)

    statistics = evaluator.evaluate(AlwaysRight(), 25, seed=4)

    expected = _countdown_lengths(25, 4)
    assert statistics.lengths.tolist() == expected
    assert statistics.returns.tolist() == [2.0 * length for length in expected]
    assert statistics.returns.dtype == np.float64
    assert statistics.lengths.dtype == np.int64


@pytest.mark.parametrize("max_envs", [2, 7])
def test_evaluate_singles_with_exploration_is_independent_of_concurrency(max_envs):
    reference = evaluate(AlwaysRight(), COUNTDOWN, 20, seed=4, epsilon=0.6)

    statistics = Evaluator(COUNTDOWN, 0.6, max_envs=max_envs).evaluate(AlwaysRight(), 20, 4)

    assert statistics.returns.tolist() == reference.returns.tolist()
    assert (reference.returns < 2 * reference.lengths).any()
    assert (reference.returns > reference.lengths).any()


def test_evaluate_singles_explores_differently_in_each_episode():
    statistics = evaluate(AlwaysRight(), COUNTDOWN, 40, 4, epsilon=1.0, max_steps_per_episode=6)

    of_six_steps = statistics.returns[statistics.lengths == 6]
    assert len(of_six_steps) > 20
    assert len(set(of_six_steps.tolist())) >= 4


def test_evaluate_singles_batches_the_active_ones():
    q_function = AlwaysRight()

    Evaluator(COUNTDOWN, max_envs=4).evaluate(q_function, 10, seed=0)

    assert q_function.batches[0] == 4
    assert sum(q_function.batches) == sum(_countdown_lengths(10, 0))


def _scalar_cartpole_returns(q_function, states):
    """Greedy returns of scalar CartPoles from the given start states."""
    returns = []
    env = gymnasium.make("CartPole-v1")
    for state in states:
        env.reset(seed=0)
        env.unwrapped.state = state
        observation, total, ended = state.astype(np.float32), 0.0, False
        while not ended:
            action = int(q_function.q_values(observation[None])[0].argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total += reward
            ended = terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize("q_function", [Balancing(), AlwaysRight()])
def test_evaluate_cartpole_plays_each_first_episode(q_function):
    seed = 6
    rng = np.random.Generator(np.random.PCG64(seeding.seed_int(seed, "eval.episodes")))
    states = rng.uniform(-0.05, 0.05, size=(4, 12)).T

    statistics = evaluate(q_function, CARTPOLE, 12, seed)

    assert statistics.returns.tolist() == _scalar_cartpole_returns(q_function, states)
    assert statistics.lengths.tolist() == statistics.returns.tolist()


def test_evaluate_cartpole_stops_when_all_have_ended():
    q_function = AlwaysRight()

    statistics = evaluate(q_function, CARTPOLE, 30, seed=1)

    assert len(q_function.batches) == statistics.lengths.max()
    assert 8 <= statistics.lengths.min() <= statistics.lengths.max() <= 11


@pytest.mark.parametrize("config", [CARTPOLE, COUNTDOWN])
def test_evaluator_result_depends_on_seed_not_on_earlier_calls(config):
    evaluator = Evaluator(config, 0.3)

    first = evaluator.evaluate(AlwaysRight(), 9, seed=1)
    other = evaluator.evaluate(AlwaysRight(), 12, seed=2)
    again = evaluator.evaluate(AlwaysRight(), 9, seed=1)
    evaluator.close()
    reopened = evaluator.evaluate(AlwaysRight(), 9, seed=1)

    assert len(other.returns) == 12
    for repeated in (again, reopened):
        assert repeated.returns.tolist() == first.returns.tolist()
    assert other.returns[:9].tolist() != first.returns.tolist()


@pytest.mark.parametrize("config", [CARTPOLE, COUNTDOWN])
def test_evaluate_cuts_episodes_at_the_step_limit(config):
    statistics = evaluate(
        Balancing() if config is CARTPOLE else AlwaysRight(), config, 20, 0, max_steps_per_episode=5
    )

    assert statistics.lengths.max() == 5
    assert len(statistics.lengths) == 20
    uncut = evaluate(Balancing() if config is CARTPOLE else AlwaysRight(), config, 20, 0)
    assert uncut.n_cut == 0
    assert statistics.n_cut == np.count_nonzero(uncut.lengths > 5) > 0


@pytest.mark.parametrize("config", [CARTPOLE, COUNTDOWN])
def test_evaluate_stopped_returns_the_ended_episodes_only(config):
    asked = []

    def should_stop():
        asked.append(True)
        return len(asked) > 9

    whole = evaluate(AlwaysRight(), config, 16, seed=3)
    stopped = Evaluator(config).evaluate(AlwaysRight(), 16, 3, should_stop=should_stop)

    ended = whole.lengths <= 9
    assert stopped.returns.tolist() == whole.returns[ended].tolist()
    assert 0 < len(stopped.returns) < 16


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_evaluator_refuses_impossible_epsilon(epsilon):
    with pytest.raises(ValueError, match=r"eval\.epsilon"):
        Evaluator(CARTPOLE, epsilon)


def test_evaluator_refuses_no_episodes():
    with pytest.raises(ValueError, match=r"eval\.episodes"):
        evaluate(AlwaysRight(), CARTPOLE, 0, seed=1)


def test_evaluate_frames_asks_for_those_that_still_play_alone():
    """Convolutions take the time; states keep the whole batch, for bits that do not change."""
    config = EnvConfig(observation="pixels", renderer="fast", frame_stack=2, frame_size=12)
    frames, states = AlwaysRight(), AlwaysRight()

    seen = evaluate(frames, config, 6, seed=2)

    expected = evaluate(states, EnvConfig(), 6, seed=2)
    np.testing.assert_array_equal(seen.returns, expected.returns)
    longest = int(seen.lengths.max())
    assert frames.batches == [int((seen.lengths > step).sum()) for step in range(longest)]
    assert states.batches == [6] * longest
