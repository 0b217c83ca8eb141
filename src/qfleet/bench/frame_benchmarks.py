"""Frames per second of CartPole on one core: drawn by Gymnasium and shrunk, and drawn directly."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from qfleet.bench.bench_record import Measurement
from qfleet.bench.timing import Effort, rates_per_s
from qfleet.common.types import Array

FRAME_SIZE_PX = 84
STATES, SUB_ENVIRONMENTS = 4096, 16
SEED = 1


def random_states(n: int) -> Array:
    """float64 [n, 4] positions and tilts as episodes meet them, ends included."""
    rng = np.random.default_rng(SEED)
    states = np.zeros((n, 4))
    states[:, 0] = rng.uniform(-2.4, 2.4, n)
    states[:, 2] = rng.uniform(-0.21, 0.21, n)
    return states


def measure_frames(effort: Effort) -> list[Measurement]:
    """The rgb_array path, then the fast renderer over the same states, 16 at a time."""
    from qfleet.common.threads import limit_threads

    limit_threads(1)
    states = random_states(STATES)
    slow = _rgb_array_rates(states, effort)
    fast = _fast_rates(states, effort)
    size = {"size_px": FRAME_SIZE_PX}
    more = {"sub-environments": SUB_ENVIRONMENTS, "states": STATES}
    ratio = {"times_rgb_array": round(statistics.median(fast) / statistics.median(slow), 1)}
    return [
        _measurement("rgb_array + gray + resize", slow, size),
        _measurement("fast renderer", fast, {**size, **more, **ratio}),
    ]


def _measurement(
    how: str, frames_per_s: tuple[float, ...], detail: Mapping[str, float]
) -> Measurement:
    rate = {"frames_per_s": round(statistics.median(frames_per_s), 1)}
    return Measurement(f"frames, CartPole, {how}", "frames/s", frames_per_s, {**rate, **detail})


def _rgb_array_rates(states: Array, effort: Effort) -> tuple[float, ...]:
    from qfleet.common.config import EnvConfig
    from qfleet.common.envs import make_env
    from qfleet.common.pixels.gray_frames import gray_frame

    env = make_env(EnvConfig(), render_mode="rgb_array")
    env.reset(seed=SEED)
    index = 0

    def call() -> None:
        nonlocal index
        env.unwrapped.state = states[index % STATES]  # type: ignore[attr-defined]  # CartPole's
        gray_frame(np.asarray(env.render()), FRAME_SIZE_PX)
        index += 1

    try:
        return tuple(rates_per_s(call, 1, effort))
    finally:
        env.close()


def _fast_rates(states: Array, effort: Effort) -> tuple[float, ...]:
    from qfleet.common.pixels.cartpole_frames import CartPoleFrames

    frames = CartPoleFrames(FRAME_SIZE_PX)

    def call() -> None:
        for start in range(0, STATES, SUB_ENVIRONMENTS):
            frames.frames(states[start : start + SUB_ENVIRONMENTS])

    return tuple(rates_per_s(call, STATES, effort))
