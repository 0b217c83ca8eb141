"""Frames of an environment: from its rendering, its own images, drawn fast, or refused."""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.common.config import EnvConfig
from qfleet.common.envs import describe_environment, make_env
from qfleet.common.errors import ConfigError
from qfleet.common.pixels.gray_frames import gray_frame
from qfleet.common.types import Array
from qfleet.common.vector_envs import StepResult, has_native_vector, make_vector_env

GYMNASIUM = EnvConfig(observation="pixels", frame_stack=3)
FAST = EnvConfig(observation="pixels", frame_stack=3, renderer="fast")


class Pictures(gymnasium.Env[Any, Any]):
    """Counts up in every pixel; an episode lasts `length` steps, truncated when `truncates`."""

    def __init__(
        self, shape: tuple[int, ...], length: int = 3, truncates: bool = False, can: bool = True
    ) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(2)
        self.length, self.truncates, self.count = length, truncates, 0
        self.metadata = {"render_modes": ["human", "rgb_array"] if can else ["ansi"]}

    def picture(self) -> Array:
        return np.full(self.observation_space.shape, self.count, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 10 * (self.count // 10) + 10
        return self.picture(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.count += 1
        ends = self.count % 10 == self.length
        return self.picture(), 1.0, ends and not self.truncates, ends and self.truncates, {}


class Drawn(Pictures):
    """A state without images, and a rendering of `size` pixels."""

    def __init__(self, size: int = 30, render_mode: str | None = None, **kwargs: Any) -> None:
        super().__init__((2,), **kwargs)
        self.observation_space = spaces.Box(0, 255, (2,), np.float32)
        self.size, self.render_mode = size, render_mode

    def render(self) -> Any:
        return np.full((self.size, self.size + 9, 3), self.count, np.uint8)


def pictures(render_mode: str | None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return Pictures(tuple(kwargs.pop("shape")), **kwargs)


def drawn(render_mode: str | None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return Drawn(render_mode=render_mode, **kwargs)


def own(function: str, **kwargs: Any) -> EnvConfig:
    return EnvConfig(
        factory=f"{__name__}:{function}",
        kwargs=kwargs,
        observation="pixels",
        frame_stack=3,
        frame_size=20,
    )


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def values(stacks: Array) -> list[list[int]]:
    """The gray level of each frame of each stack, which must be of one level."""
    assert (stacks == stacks[..., :1, :1]).all()
    return np.asarray(stacks)[..., 0, 0].tolist()


# One environment


def test_make_env_stacks_gymnasiums_rendering() -> None:
    env = make_env(GYMNASIUM)
    reference: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    observation, _ = env.reset(seed=5)
    reference.reset(seed=5)
    frames = [gray_frame(reference.render(), 84)] * 3

    np.testing.assert_array_equal(observation, frames)
    for action in (0, 1, 1, 0):
        observation, *_ = env.step(action)
        reference.step(action)
        frames = [*frames[1:], gray_frame(reference.render(), 84)]
        np.testing.assert_array_equal(observation, frames)
    assert env.observation_space.contains(observation)


def test_make_env_fast_frames_are_gymnasiums() -> None:
    slow, fast = make_env(GYMNASIUM), make_env(FAST)
    theirs, ours = slow.reset(seed=5)[0], fast.reset(seed=5)[0]
    for action in [0, 1, 1, 1, 1, 1, 1]:
        assert np.abs(theirs.astype(int) - ours).max() <= 1
        theirs, ours = slow.step(action)[0], fast.step(action)[0]


@pytest.mark.parametrize("renderer", ["gymnasium", "fast"])
def test_make_env_shows_the_rows_that_are_asked_for_inverted(renderer: str) -> None:
    whole = EnvConfig.model_validate(
        {"observation": "pixels", "frame_stack": 2, "frame_size": 42, "renderer": renderer}
    )
    some = whole.model_copy(update={"frame_rows": (16, 34), "frame_inverted": True})
    full, cut = make_env(whole), make_env(some)
    full.reset(seed=3)
    cut.reset(seed=3)

    for action in (0, 1, 1):
        frames, rows = full.step(action)[0], cut.step(action)[0]
        np.testing.assert_array_equal(rows, 255 - frames[:, 16:34])
    assert cut.observation_space.contains(rows)
    assert describe_environment(some).observation_shape == (2, 18, 42)
    many, all_rows = make_vector_env(some, 3), make_vector_env(whole, 3)
    np.testing.assert_array_equal(many.reset(1), 255 - all_rows.reset(1)[:, :, 16:34])


def test_make_env_keeps_rows_of_an_environments_own_images() -> None:
    whole = own("pictures", shape=[24, 30, 3])
    full, cut = make_env(whole), make_env(whole.model_copy(update={"frame_rows": (3, 9)}))

    rows = cut.reset(seed=1)[0]
    np.testing.assert_array_equal(rows, full.reset(seed=1)[0][:, 3:9])
    assert rows.shape[1] == 6


def test_make_env_can_be_filmed_while_it_observes_its_rendering() -> None:
    env = make_env(GYMNASIUM, render_mode="rgb_array")
    env.reset(seed=1)

    picture: Any = env.render()
    assert picture.shape == (400, 600, 3)


def test_make_env_gray_is_made_before_it_is_shrunk() -> None:
    env = make_env(EnvConfig(observation="pixels", frame_stack=1, frame_size=7))
    observation, _ = env.reset(seed=5)
    reference: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    reference.reset(seed=5)
    gray = cv2.cvtColor(reference.render(), cv2.COLOR_RGB2GRAY)

    np.testing.assert_array_equal(
        observation[0], cv2.resize(gray, (7, 7), interpolation=cv2.INTER_AREA)
    )


@pytest.mark.parametrize("shape", [(24, 30), (24, 30, 1), (24, 30, 3), (1, 24, 30), (3, 24, 30)])
def test_make_env_takes_an_environments_own_images(shape: tuple[int, ...]) -> None:
    env = make_env(own("pictures", shape=list(shape)))

    assert values(env.reset()[0]) == [10, 10, 10]
    assert values(env.step(0)[0]) == [10, 10, 11]
    assert values(env.reset()[0]) == [20, 20, 20]


def test_describe_environment_says_stacked_bytes() -> None:
    spec = describe_environment(FAST)

    assert spec.observation_shape == (3, 84, 84)
    assert spec.observation_dtype == "|u1"
    assert spec.frame_stack == 3
    assert spec.n_inputs == 3
    assert spec.reward_threshold == 475.0


def test_describe_environment_of_states_stacks_nothing() -> None:
    spec = describe_environment(EnvConfig())

    assert (spec.observation_dtype, spec.frame_stack) == ("<f4", None)


# What cannot be done, each with its key and remedy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            EnvConfig(id="Acrobot-v1", observation="pixels", renderer="fast"),
            r"env\.renderer=fast: Acrobot-v1 has no fast renderer, only CartPole-v0, CartPole-v1 "
            r"have; set env\.renderer gymnasium",
        ),
        (own("drawn", can=False), r"cannot be rendered as rgb_array .*set env\.observation state"),
        (own("drawn", size=19), r"19 × 28 pixels cannot be enlarged to 20 \(env\.frame_size\)"),
        (own("pictures", shape=[19, 40]), r"enlarged to 20 \(env\.frame_size\): set it to 19"),
        (own("pictures", shape=[40, 40, 4]), r"observes images \[40, 40, 4\]; they must be gray"),
    ],
    ids=["no renderer", "cannot render", "small rendering", "small images", "four channels"],
)
def test_describe_environment_refuses_what_gives_no_frames(config: EnvConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_environment(config)


def test_make_env_images_as_states_name_the_key() -> None:
    config = own("pictures", shape=[24, 30]).model_copy(update={"observation": "state"})

    with pytest.raises(ConfigError, match=r"set env\.observation pixels"):
        make_env(config)


def test_make_env_drawn_observations_cannot_be_watched_in_a_window() -> None:
    with pytest.raises(ConfigError, match=r"--video\), or set env\.renderer fast"):
        make_env(own("drawn"), render_mode="human")


# Vectors


def play(config: EnvConfig, n_envs: int, n_steps: int) -> list[StepResult]:
    env = make_vector_env(config, n_envs)
    env.reset(3)
    return [env.step(np.zeros(n_envs, dtype=np.int32)) for _ in range(n_steps)]


def test_vector_stacks_never_cross_an_episode() -> None:
    results = play(own("pictures", shape=[24, 30]), 2, 5)

    successors = [values(result.next_observations) for result in results]
    shown = [values(result.observations) for result in results]
    assert [stacks[0] for stacks in successors] == [
        [10, 10, 11],
        [10, 11, 12],
        [11, 12, 13],  # the final frames, though the environment was reset in this step
        [20, 20, 21],
        [20, 21, 22],
    ]
    assert [stacks[0] for stacks in shown] == [
        [10, 10, 11],
        [10, 11, 12],
        [20, 20, 20],
        [20, 20, 21],
        [20, 21, 22],
    ]
    assert all(one == other for one, other in successors)


@pytest.mark.parametrize("truncates", [False, True])
def test_vector_tells_terminated_from_truncated(truncates: bool) -> None:
    last = play(own("pictures", shape=[24, 30], truncates=truncates), 1, 3)[-1]

    assert (bool(last.terminated[0]), bool(last.truncated[0])) == (not truncates, truncates)
    assert values(last.next_observations) == [[11, 12, 13]]


def test_native_vector_draws_what_a_single_environment_draws() -> None:
    """The same states give the same stacks, over the end of an episode and its reset step."""
    vector = make_vector_env(FAST, 2)
    observations = vector.reset(3)
    state_vector = make_vector_env(EnvConfig(), 2)
    state_vector.reset(3)
    renderer: Any = vector._frames.renderer  # type: ignore[union-attr]
    frames = renderer.frames(np.asarray(state_vector._env.state, dtype=np.float64).T)
    expected = np.repeat(frames[:, None], 3, axis=1)
    begins = np.zeros(2, dtype=bool)
    for _ in range(30):
        np.testing.assert_array_equal(observations, expected)
        result = vector.step(np.zeros(2, dtype=np.int32))
        states = state_vector.step(np.zeros(2, dtype=np.int32))
        frames = renderer.frames(np.asarray(state_vector._env.state, dtype=np.float64).T)
        expected = np.concatenate([expected[:, 1:], frames[:, None]], axis=1)
        expected[begins] = frames[begins, None]
        begins = states.terminated | states.truncated
        np.testing.assert_array_equal(result.is_transition, states.is_transition)
        observations = result.observations
        vector.check_valid()
    assert result.observations is not None


def test_only_fast_frames_are_played_as_a_native_vector() -> None:
    assert has_native_vector(FAST)
    assert not has_native_vector(GYMNASIUM)
    assert make_vector_env(GYMNASIUM, 2).reset(3).shape == (2, 3, 84, 84)


def test_captured_vector_goes_on_with_the_same_frames() -> None:
    env, copy = make_vector_env(FAST, 2), make_vector_env(FAST, 2)
    env.reset(3)
    copy.reset(4)
    actions = np.array([0, 1], dtype=np.int32)
    for _ in range(12):
        env.step(actions)

    copy.restore(env.capture())

    for _ in range(12):
        np.testing.assert_array_equal(
            env.step(actions).observations, copy.step(actions).observations
        )
