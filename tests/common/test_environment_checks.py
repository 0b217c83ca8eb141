"""Every mistake of an environment: what is said of it, before a run and in it."""

import pickle
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.common import envs
from qfleet.common.config import EnvConfig
from qfleet.common.environment_checks import PROBE_STEPS, CheckedEnvironment
from qfleet.common.errors import ConfigError, EnvironmentFailedError
from qfleet.common.vector_envs import make_vector_env

GOOD = np.zeros(2, np.float32)


class ScriptedEnv(gymnasium.Env):
    """Answers well, until the answer that a test has put in its place."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None, step=None, at=1, reset=None):
        self._answer, self._at, self._reset = step, at, reset
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (GOOD, {}) if self._reset is None else self._reset()

    def step(self, action):
        self._steps += 1
        if self._answer is None or self._steps < self._at:
            return GOOD, 1.0, False, False, {}
        return self._answer()


class WithoutSeed(ScriptedEnv):
    def reset(self):
        return GOOD, {}


def _raises():
    return {}["price_table"]


RAISING_LINE = _raises.__code__.co_firstlineno + 1

FAULTS = {
    "exception": (
        _raises,
        rf"step raised KeyError: 'price_table' \(.*_checks\.py, line {RAISING_LINE}, in _raises\);"
        r" the error is the environment's own",
    ),
    "exit": (lambda: sys.exit(3), r"step called sys\.exit\(3\); an environment must not end"),
    "four": (
        lambda: (GOOD, 1.0, False, {}),
        r"step returned 4 values; it must return \(observation, reward, terminated, truncated",
    ),
    "none": (lambda: None, "step returned None instead of a tuple"),
    "reward array": (
        lambda: (GOOD, np.array([1.0]), False, False, {}),
        r"the reward array\(\[1\.\]\); a reward must be one number: return float\(reward\)",
    ),
    "reward text": (
        lambda: (GOOD, "1.0", False, False, {}),
        "the reward '1.0'; a reward must be one",
    ),
    "reward none": (
        lambda: (GOOD, None, False, False, {}),
        "the reward None; a reward must be one",
    ),
    "reward nan": (
        lambda: (GOOD, float("nan"), False, False, {}),
        "the reward nan; a reward must be finite",
    ),
    "reward inf": (
        lambda: (GOOD, np.float32("-inf"), False, False, {}),
        "the reward -inf; a reward must be finite",
    ),
    "done text": (
        lambda: (GOOD, 1.0, "yes", False, {}),
        "step returned terminated = 'yes'; terminated must be True or False",
    ),
    "truncated two": (
        lambda: (GOOD, 1.0, False, 2, {}),
        "step returned truncated = 2; truncated must be True or False",
    ),
    "done array": (
        lambda: (GOOD, 1.0, np.array([True]), False, {}),
        r"terminated = array\(\[ ?True\]\)",
    ),
    "info": (
        lambda: (GOOD, 1.0, False, False, None),
        "step returned info = None; info must be a dict",
    ),
    "longer": (
        lambda: (np.zeros(3), 1.0, False, False, {}),
        r"its shape is \[3\], the space's \[2\]; every observation must be finite and of its space",
    ),
    "other shape": (lambda: (np.zeros((2, 1)), 1.0, False, False, {}), r"its shape is \[2, 1\]"),
    "observation text": (
        lambda: ("left", 1.0, False, False, {}),
        "returned the observation 'left'",
    ),
    "observation none": (lambda: (None, 1.0, False, False, {}), "returned the observation None"),
    "observation nan": (
        lambda: (np.array([0, np.nan]), 1.0, False, False, {}),
        r"value 1 of the observation is nan; every observation must be finite",
    ),
    "observation inf": (
        lambda: (np.array([-np.inf, 0]), 1.0, False, False, {}),
        "value 0 of the observation is -inf",
    ),
    "beyond float32": (
        lambda: ([0.0, 1e300], 1.0, False, False, {}),
        "value 1 of the observation is inf",
    ),
    "far outside": (
        lambda: (np.array([0, 1e6]), 1.0, False, False, {}),
        r"value 1 of the observation is 1e\+06, but its space allows -1 to 1",
    ),
}


def _config(monkeypatch, factory, **kwargs):
    module = type(sys)("qfleet_test_scripts")
    module.make = factory
    monkeypatch.setitem(sys.modules, "qfleet_test_scripts", module)
    return EnvConfig(factory="qfleet_test_scripts:make", kwargs=kwargs)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_step_is_refused_by_the_trial_before_the_start(monkeypatch, fault):
    answer, words = FAULTS[fault]

    with pytest.raises(ConfigError, match=words) as caught:
        envs.describe_environment(_config(monkeypatch, ScriptedEnv, step=answer, at=3))

    said = str(caught.value)
    assert said.startswith(
        "env.factory='qfleet_test_scripts:make' failed in the trial before the start at step 3 of "
        "episode 2: step "
    )
    assert caught.value.exit_code == 2


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_step_later_says_the_same_with_slot_and_step(monkeypatch, fault):
    answer, words = FAULTS[fault]
    config = _config(monkeypatch, ScriptedEnv, step=answer, at=PROBE_STEPS + 1)
    envs.describe_environment(config)  # the trial sees nothing
    env = make_vector_env(config, 2, place="actor 4")
    env.reset(0)
    for _ in range(PROBE_STEPS):
        env.step(np.zeros(2, np.int32))

    with pytest.raises(EnvironmentFailedError, match=words) as caught:
        env.step(np.zeros(2, np.int32))

    said = str(caught.value)
    assert said.startswith(
        "env.factory='qfleet_test_scripts:make' failed in actor 4, sub-environment 0 at step 9 of "
        "episode 1: step "
    )
    assert caught.value.exit_code == 5
    copy = pickle.loads(pickle.dumps(caught.value))  # as Ray ships it
    assert str(copy) == said


@pytest.mark.parametrize(
    ("factory", "answer", "words"),
    [
        (WithoutSeed, None, r"reset raised TypeError: .*define it as reset\(self, \*, seed=None"),
        (
            ScriptedEnv,
            lambda: GOOD,
            r"reset returned array\(.*it must return \(observation, info\)",
        ),
        (ScriptedEnv, lambda: (GOOD, {}, {}), "reset returned 3 values"),
        (ScriptedEnv, lambda: (np.zeros(5), {}), r"its shape is \[5\]"),
        (ScriptedEnv, lambda: (GOOD * np.nan, {}), "value 0 of the observation is nan"),
        (ScriptedEnv, _raises, "reset raised KeyError: 'price_table'"),
        (ScriptedEnv, lambda: sys.exit(3), r"reset called sys\.exit\(3\)"),
    ],
)
def test_wrong_reset_is_refused_by_the_trial(monkeypatch, factory, answer, words):
    with pytest.raises(
        ConfigError, match=rf"trial before the start at the reset of episode 1: .*{words}"
    ):
        envs.describe_environment(
            _config(monkeypatch, lambda render_mode=None: factory(reset=answer))
        )


def test_environment_that_can_be_reset_only_once_is_refused(monkeypatch):
    resets = iter([(GOOD, {})])

    with pytest.raises(ConfigError, match="the reset of episode 2: reset raised StopIteration"):
        envs.describe_environment(
            _config(monkeypatch, lambda render_mode=None: ScriptedEnv(reset=lambda: next(resets)))
        )


@pytest.mark.parametrize(
    ("answer", "reward", "terminated"),
    [
        ((GOOD, 1, False, False, {}), 1.0, False),
        ((GOOD, np.float32(0.5), np.bool_(True), np.False_, {}), 0.5, True),
        (([0.5, -0.5], np.array(2.0), 1, 0, {}), 2.0, True),
        ((np.array([0.5, 1.5]), True, np.array(True), False, {}), 1.0, True),
    ],
)
def test_what_can_be_understood_is_taken(monkeypatch, answer, reward, terminated):
    env = envs.make_env(_config(monkeypatch, ScriptedEnv, step=lambda: answer))
    env.reset(seed=0)

    observation, got_reward, got_terminated, got_truncated, _ = env.step(1)

    assert observation.tolist() == list(answer[0])
    assert (got_reward, got_terminated, got_truncated) == (reward, terminated, False)
    assert (type(got_reward), type(got_terminated)) == (float, bool)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (-1, "it is not in the space"),
        (3, "it is not in the space"),
        (1.5, "'float' object cannot be interpreted as an integer"),
        ("a", "'str' object cannot be interpreted as an integer"),
    ],
)
def test_discrete_observation_outside_its_space_is_refused(monkeypatch, observation, words):
    class Discrete(ScriptedEnv):
        observation_space = spaces.Discrete(3)

    with pytest.raises(ConfigError, match=rf"the observation {observation!r}: .*{words}"):
        envs.describe_environment(
            _config(monkeypatch, lambda render_mode=None: Discrete(reset=lambda: (observation, {})))
        )


def test_infos_that_no_vector_environment_could_gather_do_no_harm(monkeypatch):
    infos = iter([{"path": np.zeros(n)} for n in range(1, 20)])
    config = _config(monkeypatch, ScriptedEnv, step=lambda: (GOOD, 1.0, False, False, next(infos)))
    env = make_vector_env(config, 2)
    env.reset(0)

    for _ in range(4):
        assert env.step(np.zeros(2, np.int32)).rewards.tolist() == [1.0, 1.0]
    assert "path" in envs.make_env(config).env.step(0)[4]


def test_sub_environments_that_differ_are_refused(monkeypatch):
    sizes = iter([1.0, 2.0])

    def make(render_mode=None):
        env = ScriptedEnv()
        env.observation_space = spaces.Box(-1, next(sizes), (2,), np.float32)
        return env

    with pytest.raises(ConfigError, match="environments made of one configuration differ"):
        make_vector_env(_config(monkeypatch, make), 2)


def test_environment_that_cannot_be_closed_only_warns(monkeypatch):
    env = envs.make_env(_config(monkeypatch, ScriptedEnv))
    env.env.close = _raises

    with pytest.warns(UserWarning, match="close raised KeyError: 'price_table'"):
        env.close()


def test_exit_that_a_signal_causes_is_not_the_environments(monkeypatch):
    handler = {"__name__": "ray._private.worker"}
    exec("def sigterm():\n    raise SystemExit(15)", handler)
    env = envs.make_env(_config(monkeypatch, ScriptedEnv, step=handler["sigterm"]))
    env.reset(seed=0)

    with pytest.raises(SystemExit):
        env.step(0)


def test_every_environment_is_checked_but_the_one_that_is_gymnasiums_own():
    assert isinstance(envs.make_env(EnvConfig()), CheckedEnvironment)
    sub_envs = make_vector_env(EnvConfig(id="Acrobot-v1"), 2)._env.envs
    assert all(isinstance(env, CheckedEnvironment) for env in sub_envs)
