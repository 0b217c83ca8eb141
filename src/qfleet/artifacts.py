"""What a run leaves for a person to look at: the play video and the learning curve.

Called by `train` at its end. Neither decides the outcome: when one fails, the run says so and ends
as it would have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from qfleet.api import load_policy, make_env
from qfleet.common.config import EnvConfig
from qfleet.common.errors import QfleetError
from qfleet.learning_curve import plot_learning_curve
from qfleet.recording import record_play

VIDEO_FILE = "play.webp"
"""An animation that browsers and picture viewers play, encoded in a fifth of a second; VP9 takes
several. `qfleet play` records .mp4 and .webm at full size."""


class Artifacts:
    """Both, made in two threads while Ray shuts down: encoding and drawing leave the GIL free.

    `start` once training has ended and its last metrics row is written, then `wait`.
    """

    def __init__(self, run_dir: Path, env: EnvConfig) -> None:
        self._run_dir, self._env = run_dir, env
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._plot, name="learning-curve", daemon=True),
            threading.Thread(target=self._film, name="play-video", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def wait(self, incident: Callable[[str], None], timeout_s: float = 120.0) -> None:
        """Until both are there; what could not be made is told to `incident`."""
        for thread in self._threads:
            thread.join(timeout_s)
            if thread.is_alive():
                self._failures.append(f"{thread.name} was not ready after {timeout_s:.0f} s")
        for failure in self._failures:
            incident(failure)

    def _plot(self) -> None:
        try:
            plot_learning_curve(self._run_dir)
        except (OSError, ValueError, QfleetError) as error:
            self._failures.append(f"no learning curve: {error}")

    def _film(self) -> None:
        try:
            _record(self._run_dir, self._env)
        except Exception as error:  # an environment's renderer may raise anything
            self._failures.append(f"no play video: {type(error).__name__}: {error}")


def _record(run_dir: Path, env_config: EnvConfig) -> Path:
    policy = load_policy(run_dir)
    env = make_env(env_config, render_mode="rgb_array")
    try:
        fps = int(env.metadata.get("render_fps", 30))
        path = run_dir / "videos" / VIDEO_FILE
        path.parent.mkdir(exist_ok=True)
        return record_play(policy.act, env, path, episodes=1, fps=fps).path
    finally:
        env.close()
