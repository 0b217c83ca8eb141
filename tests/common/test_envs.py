import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.common import envs
from qfleet.common.config import EnvConfig
from qfleet.common.errors import ConfigError


class SpacesEnv(gymnasium.Env):
    """Observes a fixed value of any space and records the action that reached it."""

    def __init__(self, observation_space, observation, action_space=None, render_mode=None):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.render_mode = render_mode
        self._observation = observation
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action):
        self.received.append(action)
        return self._observation, 1.0, False, False, {}


class CountingEnv(gymnasium.Env):
    """Writes the step count into one buffer that it returns again and again."""

    observation_space = spaces.Box(-1e308, 1e308, (1, 2), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None, scale=1.0):
        self._buffer = np.zeros((1, 2))
        self._scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._buffer[:] = 0.0
        return self._buffer, {}

    def step(self, action):
        self._buffer += self._scale
        return self._buffer, 1.0, False, False, {}


def _of_factory(monkeypatch, factory, **kwargs):
    """A config whose factory is `factory`, found in a module made for the test."""
    module = type(sys)("qfleet_test_factories")
    module.make = factory
    monkeypatch.setitem(sys.modules, "qfleet_test_factories", module)
    return EnvConfig(factory="qfleet_test_factories:make", kwargs=kwargs)


def _make(monkeypatch, observation_space, observation, action_space=None):
    inner = SpacesEnv(observation_space, observation, action_space)
    return inner, envs.make_env(_of_factory(monkeypatch, lambda render_mode: inner))


def test_make_env_cartpole_observes_flat_float32():
    env = envs.make_env(EnvConfig())

    observation, _ = env.reset(seed=3)

    assert observation.dtype == np.float32
    assert observation.shape == (4,)
    assert env.observation_space.dtype == np.float32
    reference, _ = gymnasium.make("CartPole-v1").reset(seed=3)
    assert np.array_equal(observation, reference)


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.Discrete(3), 1, [0, 1, 0]),
        (spaces.Discrete(3, start=5), 7, [0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (spaces.Box(0, 255, (3,), np.uint8), np.array([7, 8, 9], np.uint8), [7, 8, 9]),
        (
            spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,), np.float64)}),
            {"a": 1, "b": np.array([0.5, -0.5])},
            [0, 1, 0.5, -0.5],
        ),
        (
            spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
            (0, 2),
            [1, 0, 0, 0, 1],
        ),
    ],
)
def test_make_env_flattens_every_space_to_float32(monkeypatch, space, observation, expected):
    _, env = _make(monkeypatch, space, observation)

    first, _ = env.reset(seed=0)
    second = env.step(0)[0]

    assert first.tolist() == second.tolist() == expected
    assert first.dtype == np.float32
    assert env.observation_space.shape == (len(expected),)
    assert env.observation_space.contains(first)


def test_make_env_never_returns_the_environments_live_buffer(monkeypatch):
    env = envs.make_env(_of_factory(monkeypatch, CountingEnv, scale=2.0))

    start, _ = env.reset(seed=0)
    first = env.step(0)[0]
    env.step(0)

    assert start.tolist() == [0.0, 0.0]
    assert first.tolist() == [2.0, 2.0]


def test_make_env_discrete_with_start_is_shifted_to_zero(monkeypatch):
    inner, env = _make(monkeypatch, spaces.Discrete(2), 0, spaces.Discrete(3, start=-1))

    env.reset(seed=0)
    for action in range(3):
        env.step(np.int64(action))

    assert env.action_space == spaces.Discrete(3)
    assert inner.received == [-1, 0, 1]


def test_make_env_continuous_actions_name_id_space_and_remedy():
    with pytest.raises(ConfigError, match=r"Pendulum-v1.*Box.*Discrete.*env\.factory"):
        envs.make_env(EnvConfig(id="Pendulum-v1"))


@pytest.mark.parametrize("shape", [(84, 84), (3, 32, 32), (210, 160, 3)])
def test_make_env_images_are_refused(monkeypatch, shape):
    image = spaces.Box(0, 255, shape, np.uint8)

    with pytest.raises(ConfigError, match=r"set env\.observation pixels"):
        _make(monkeypatch, image, np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=r"set env\.observation pixels"):
        _make(monkeypatch, spaces.Dict({"screen": spaces.Tuple((image,))}), None)


@pytest.mark.parametrize("shape", [(128,), (16, 84), (10, 10, 4)])
def test_make_env_small_uint8_arrays_are_no_images(monkeypatch, shape):
    space = spaces.Box(0, 255, shape, np.uint8)

    _, env = _make(monkeypatch, space, np.zeros(shape, np.uint8))

    assert env.observation_space.shape == (int(np.prod(shape)),)


def test_make_env_space_without_flat_form_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="no flat form"):
        _make(monkeypatch, spaces.Sequence(spaces.Discrete(2)), ())


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-V1", "CartPole-v1"),
        ("MountainCarr-v0", "MountainCar-v0"),
        ("LunarLander-v2", "LunarLander-v3"),
    ],
)
def test_make_env_misspelt_id_suggests_the_right_one(wrong, right):
    assert right in envs.env_id_suggestions(wrong)
    with pytest.raises(ConfigError, match=f"env.id='{wrong}'.*did you mean.*{right}"):
        envs.make_env(EnvConfig(id=wrong))


def test_env_id_suggestions_of_nothing_alike_are_empty():
    assert envs.env_id_suggestions("qqqqqqqqqqqqqqqqq") == []


def test_make_env_missing_box2d_names_our_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)

    with pytest.raises(ConfigError, match=r"LunarLander-v3.*pip install 'qfleet\[box2d\]'"):
        envs.make_env(EnvConfig(id="LunarLander-v3"))


def test_make_env_missing_module_of_id_is_a_config_error():
    with pytest.raises(ConfigError, match=r"no_such_module:X-v0.*no_such_module"):
        envs.make_env(EnvConfig(id="no_such_module:X-v0"))


def test_make_env_refused_kwargs_name_the_key():
    with pytest.raises(ConfigError, match=r"env\.kwargs=.*gravitas.*CartPole-v1"):
        envs.make_env(EnvConfig(kwargs={"gravitas": 1}))


def test_make_env_kwargs_reach_gymnasium():
    env = envs.make_env(EnvConfig(kwargs={"sutton_barto_reward": True, "max_episode_steps": 2}))

    env.reset(seed=0)

    assert env.step(0)[1] == 0.0
    assert env.step(0)[3] is True


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_at_all:make", "No module named"),
        ("math:no_such_function", "has no function no_such_function"),
        ("math:pi", "not a function"),
        ("builtins:dict", "must return a gymnasium.Env, got dict"),
    ],
)
def test_make_env_broken_factory_is_a_config_error(path, message):
    with pytest.raises(ConfigError, match=message):
        envs.make_env(EnvConfig(factory=path))


def test_make_env_factory_refusing_kwargs_names_the_key(monkeypatch):
    with pytest.raises(ConfigError, match=r"env\.kwargs=.*wrong_name"):
        envs.make_env(_of_factory(monkeypatch, CountingEnv, wrong_name=1))


def test_make_env_error_inside_a_factory_is_told_with_its_line(monkeypatch):
    def broken(render_mode):
        return 1 + "a"

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(
        ConfigError,
        match=rf"env\.factory=.*could not be made: it raised TypeError: unsupported operand.*"
        rf"test_envs\.py, line {line}, in broken.*the environment's own",
    ):
        envs.make_env(_of_factory(monkeypatch, broken))


def test_make_env_exit_inside_a_factory_is_an_error(monkeypatch):
    with pytest.raises(ConfigError, match="it raised SystemExit: 3"):
        envs.make_env(_of_factory(monkeypatch, lambda render_mode: sys.exit(3)))


def test_make_env_module_missing_in_another_way_is_a_config_error():
    with pytest.raises(ConfigError, match=r"GymV21Environment-v0.*needs a module"):
        envs.make_env(EnvConfig(id="GymV21Environment-v0", kwargs={"env_id": "x"}))


def test_make_env_error_at_import_of_a_factorys_module_is_told(monkeypatch, tmp_path):
    (tmp_path / "qfleet_broken_env.py").write_text("price = {}['table']\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        ConfigError, match=r"cannot be imported: KeyError: 'table' .*qfleet_broken_env\.py, line 1"
    ):
        envs.make_env(EnvConfig(factory="qfleet_broken_env:make"))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Discrete(3, start=5)])
def test_make_env_actions_are_those_of_gymnasiums_sampling(monkeypatch, space):
    inner, env = _make(monkeypatch, spaces.Discrete(2), 0, space)

    env.reset(seed=0)
    for action in (0, np.int32(1), np.int64(2)):
        env.step(action)

    assert {type(action) for action in inner.received} == {type(space.sample())} == {np.int64}
    assert inner.received == [space.start, space.start + 1, space.start + 2]


def test_make_env_imports_modules_of_the_working_directory(monkeypatch, tmp_path):
    (tmp_path / "qfleet_cwd_env.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('QfleetCwd-v0', 'gymnasium.envs.classic_control:CartPoleEnv',"
        " max_episode_steps=7, reward_threshold=6.5)\n"
        "def make(render_mode=None):\n"
        "    return gymnasium.make('CartPole-v1', render_mode=render_mode)\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    try:
        of_id = envs.describe_environment(EnvConfig(id="qfleet_cwd_env:QfleetCwd-v0"))
        of_factory = envs.describe_environment(EnvConfig(factory="qfleet_cwd_env:make"))
    finally:
        gymnasium.registry.pop("QfleetCwd-v0", None)
        sys.modules.pop("qfleet_cwd_env", None)

    assert of_id.env_id == "qfleet_cwd_env:QfleetCwd-v0"
    assert (of_id.max_episode_steps, of_id.reward_threshold) == (7, 6.5)
    assert of_factory.env_id == "qfleet_cwd_env:make"


def test_make_env_renders_without_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    env = envs.make_env(EnvConfig(), render_mode="rgb_array")

    env.reset(seed=0)
    frame = env.render()
    env.close()

    assert frame.shape == (400, 600, 3)
    assert frame.dtype == np.uint8


def test_describe_environment_of_cartpole():
    spec = envs.describe_environment(EnvConfig())

    assert spec.env_id == "CartPole-v1"
    assert spec.observation_shape == (4,)
    assert spec.observation_dtype == "<f4"
    assert spec.n_actions == 2
    assert spec.reward_threshold == 475.0
    assert spec.max_episode_steps == 500


def test_describe_environment_without_registration_has_no_threshold(monkeypatch):
    spec = envs.describe_environment(_of_factory(monkeypatch, CountingEnv))

    assert spec.observation_shape == (2,)
    assert spec.reward_threshold is None
    assert spec.max_episode_steps is None


def test_describe_environment_of_discrete_observations_counts_the_one_hot():
    spec = envs.describe_environment(EnvConfig(id="FrozenLake-v1"))

    assert spec.observation_shape == (16,)
    assert spec.n_actions == 4


def test_environment_by_a_factory_inherits_no_threshold_of_what_it_wraps():
    config = EnvConfig(factory="gymnasium:make", kwargs={"id": "CartPole-v1"})

    assert envs.describe_environment(config).reward_threshold is None
    assert envs.describe_environment(EnvConfig()).reward_threshold == 475.0
