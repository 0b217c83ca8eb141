from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from qfleet.common import capture_stream
from qfleet.common.config import EnvConfig
from qfleet.common.envs import make_env
from qfleet.common.errors import CheckpointError, ConfigError, QfleetError
from qfleet.common.vector_envs import VectorEnvAdapter, has_native_vector, make_vector_env

NEXT_STEP, SAME_STEP = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP


class WalkEnv(gymnasium.Env):
    """A walk on the line that ends at ±3; the reset position is drawn. Returns its live buffer."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self._buffer = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._buffer[:] = self.np_random.integers(-1, 2), 0
        return self._buffer, {}

    def step(self, action):
        self._buffer += (1 if action else -1), 1
        ended = bool(abs(self._buffer[0]) >= 3)
        return self._buffer, float(self._buffer[0]), ended, False, {"position": 1.0}


class CapturableWalk(WalkEnv):
    """The walk with the documented protocol."""

    def capture(self):
        return {"buffer": self._buffer.tolist()}

    def restore(self, state):
        self._buffer[:] = state["buffer"]


def limited_walk(render_mode=None):
    return TimeLimit(WalkEnv(), 5)


def limited_capturable_walk(render_mode=None):
    return TimeLimit(CapturableWalk(), 5)


def _walk_config(name):
    return EnvConfig(factory=f"{__name__}:{name}")


def _scalar_reference(config, seeds, actions):
    """Rows (s, reward, s', terminated, truncated) of each sub-environment, played one by one."""
    trajectories = []
    for seed, own_actions in zip(seeds, actions, strict=True):
        env = make_env(config)
        observation, _ = env.reset(seed=seed)
        rows = []
        for action in own_actions:
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, reward, following, terminated, truncated))
            observation = following
            if terminated or truncated:
                observation, _ = env.reset()
        trajectories.append(rows)
    return trajectories


def _adapter_trajectories(adapter, seed, actions):
    """The same rows through the adapter; a sub-environment's next action waits for its resets."""
    observations = adapter.reset(seed)
    n_envs, n_steps = adapter.n_envs, len(actions[0])
    trajectories = [[] for _ in range(n_envs)]
    frozen = []
    while min(len(rows) for rows in trajectories) < n_steps:
        chosen = np.array(
            [actions[i][min(len(trajectories[i]), n_steps - 1)] for i in range(n_envs)]
        )
        result = adapter.step(chosen)
        frozen.append((result, [np.copy(part) for part in result]))
        for i in np.flatnonzero(result.is_transition):
            trajectories[i].append(
                (
                    observations[i],
                    result.rewards[i],
                    result.next_observations[i],
                    result.terminated[i],
                    result.truncated[i],
                )
            )
        observations = result.observations
        adapter.check_valid()
    for result, copies in frozen:  # nothing handed out was written to later
        assert all(np.array_equal(a, b) for a, b in zip(result, copies, strict=True))
    return [rows[:n_steps] for rows in trajectories]


def _assert_same(actual, expected, atol=0.0):
    for rows, reference in zip(actual, expected, strict=True):
        for row, wanted in zip(rows, reference, strict=True):
            for got, want in zip(row[:3], wanted[:3], strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=atol)
            assert (bool(row[3]), bool(row[4])) == (wanted[3], wanted[4])


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_adapter_of_every_family_equals_scalar_environments(vector, mode, copy):
    config = _walk_config("limited_walk")
    actions = np.random.default_rng(0).integers(0, 2, (3, 60))
    expected = _scalar_reference(config, [7, 8, 9], actions)
    assert any(row[3] for rows in expected for row in rows), "terminations must occur"
    assert any(row[4] and not row[3] for rows in expected for row in rows), "truncations, too"

    adapter = VectorEnvAdapter(
        vector([partial(make_env, config)] * 3, copy=copy, autoreset_mode=mode)
    )
    try:
        actual = _adapter_trajectories(adapter, 7, actions)
    finally:
        adapter.close()

    _assert_same(actual, expected)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_make_vector_env_of_other_ids_equals_scalar_environments(asynchronous):
    config = EnvConfig(id="Acrobot-v1", kwargs={"max_episode_steps": 9})
    actions = np.random.default_rng(1).integers(0, 3, (2, 30))

    adapter = make_vector_env(config, 2, asynchronous=asynchronous)
    try:
        actual = _adapter_trajectories(adapter, 3, actions)
    finally:
        adapter.close()

    _assert_same(actual, _scalar_reference(config, [3, 4], actions))
    assert adapter.n_actions == 3


def test_cartpole_vector_equals_scalar_cartpole_from_the_same_states():
    n_envs, limit = 4, 500
    adapter = make_vector_env(EnvConfig(), n_envs)
    observations = adapter.reset(5)
    rng = np.random.default_rng(2)
    scalars = [gymnasium.make("CartPole-v1").unwrapped for _ in range(n_envs)]
    lengths = np.zeros(n_envs, int)
    ended = {"terminated": 0, "truncated": 0, "reset": 0}

    def start(i):
        scalars[i].reset(seed=0)
        scalars[i].state = np.array(adapter._env.state[:, i])
        scalars[i].steps_beyond_terminated = None
        lengths[i] = 0

    for i in range(n_envs):
        start(i)
    for _ in range(1_300):
        # Sub-environment 0 balances (a feedback rule that reaches the limit); the others flail.
        actions = rng.integers(0, 2, n_envs)
        x, x_dot, theta, theta_dot = observations[0]
        actions[0] = theta + 0.5 * theta_dot + 0.02 * x + 0.05 * x_dot > 0
        result = adapter.step(actions)
        for i in range(n_envs):
            if not result.is_transition[i]:
                start(i)
                ended["reset"] += 1
                assert result.rewards[i] == 0.0
                assert lengths[i] == 0
            else:
                following, reward, terminated, *_ = scalars[i].step(int(actions[i]))
                lengths[i] += 1
                np.testing.assert_allclose(
                    result.next_observations[i], following, rtol=1e-6, atol=1e-6
                )
                assert result.rewards[i] == reward
                assert result.terminated[i] == terminated
                assert result.truncated[i] == (lengths[i] >= limit)
                ended["terminated"] += bool(result.terminated[i])
                ended["truncated"] += bool(result.truncated[i])
                if terminated or result.truncated[i]:
                    lengths[i] = -1
            assert not (result.terminated[i] and not result.is_transition[i])
        observations = result.observations
        adapter.check_valid()

    assert ended["truncated"] >= 2
    assert ended["terminated"] >= 50
    assert ended["reset"] >= ended["terminated"]


def test_next_step_reset_row_follows_every_end_and_nothing_else():
    adapter = make_vector_env(EnvConfig(id="CartPole-v1"), 8)
    adapter.reset(0)
    expected = np.ones(8, bool)

    for _ in range(200):
        result = adapter.step(np.ones(8, np.int32))
        assert np.array_equal(result.is_transition, expected)
        expected = ~(result.terminated | result.truncated)


def test_same_step_next_observation_is_final_and_observation_is_reset():
    adapter = make_vector_env(_walk_config("limited_walk"), 1)
    adapter.reset(0)

    results = [adapter.step(np.ones(1, np.int32)) for _ in range(20)]

    final = [result for result in results if result.terminated[0]]
    assert final
    assert all(result.next_observations[0, 0] == 3.0 for result in final)
    assert all(result.observations[0, 1] == 0.0 for result in final)
    assert all(result.is_transition.all() for result in results)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EnvConfig(), True),
        (EnvConfig(kwargs={"sutton_barto_reward": True}), False),
        (EnvConfig(factory="a:b"), False),
        (EnvConfig(id="Acrobot-v1"), False),
    ],
)
def test_native_vector_is_for_plain_cartpole_alone(config, expected):
    assert has_native_vector(config) is expected


def test_adapter_refuses_disabled_autoreset():
    vector = SyncVectorEnv([WalkEnv], autoreset_mode=AutoresetMode.DISABLED)

    with pytest.raises(ConfigError, match="NEXT_STEP or SAME_STEP"):
        VectorEnvAdapter(vector)


def test_adapter_without_final_observation_raises():
    adapter = make_vector_env(_walk_config("limited_walk"), 1)
    adapter.reset(0)
    step = adapter._env.step
    adapter._env.step = lambda actions: (*step(actions)[:4], {})

    with pytest.raises(QfleetError, match="final_obs"):
        _play(adapter, np.ones((6, 1), np.int32))


def test_adapter_before_reset_has_no_observations():
    with pytest.raises(QfleetError, match="reset"):
        make_vector_env(EnvConfig(), 2).capture()


def _play(adapter, actions):
    return [adapter.step(row) for row in actions]


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("cut", [0, 1, 17, 40])
@pytest.mark.parametrize("native", [True, False])
def test_capture_restore_into_new_adapter_is_exact(native, cut, mode):
    def build():
        if native:
            adapter = make_vector_env(EnvConfig(), 3)
            adapter._env.max_episode_steps = 20  # truncations, too, depend on what is restored
            return adapter
        config = _walk_config("limited_capturable_walk")
        return VectorEnvAdapter(SyncVectorEnv([partial(make_env, config)] * 3, autoreset_mode=mode))

    actions = np.random.default_rng(cut).integers(0, 2, (cut + 150, 3))
    original, copy = build(), build()
    original.reset(11)
    copy.reset(99)
    _play(original, actions[:cut])

    assert original.supports_capture
    data = b"".join(capture_stream.encode_capture(original.capture()))
    expected = _play(original, actions[cut:])
    copy.restore(capture_stream.decode_capture(data))
    copy.check_valid()
    actual = _play(copy, actions[cut:])

    assert any(result.terminated.any() for result in expected)
    assert any(result.truncated.any() for result in expected)
    for got, want in zip(actual, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_restore_before_any_reset_works():
    original, copy = make_vector_env(EnvConfig(), 2), make_vector_env(EnvConfig(), 2)
    original.reset(1)

    copy.restore(original.capture())

    assert np.array_equal(copy.observations, original.observations)
    ones = np.ones(2, np.int64)
    assert np.array_equal(copy.step(ones).observations, original.step(ones).observations)


def test_restore_of_other_size_is_refused():
    original, copy = make_vector_env(EnvConfig(), 2), make_vector_env(EnvConfig(), 3)
    original.reset(1)

    with pytest.raises(CheckpointError, match=r"actors\.envs_per_actor"):
        copy.restore(original.capture())


def test_capture_of_environment_without_protocol_is_refused():
    adapter = make_vector_env(_walk_config("limited_walk"), 2)
    adapter.reset(0)

    assert not adapter.supports_capture
    with pytest.raises(QfleetError, match="cannot be captured"):
        adapter.capture()
