"""What a run leaves for a person to look at: the play video and the learning curve.

Called by `train` at its end. Neither decides the outcome: when one fails, the run says so and ends
as it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qfleet.api import load_policy, make_env
from qfleet.common.config import EnvConfig
from qfleet.common.errors import QfleetError
from qfleet.learning_curve import plot_learning_curve
from qfleet.recording import record_play

VIDEO_FILE = "play.mp4"


def leave_artifacts(
    run_dir: Path, env: EnvConfig, incident: Callable[[str], None]
) -> dict[str, Any]:
    """Video and curve of the run in `run_dir`; returns what was made by name."""
    made: dict[str, Any] = {}
    try:
        made["learning_curve"] = plot_learning_curve(run_dir)
    except (OSError, ValueError, QfleetError) as error:
        incident(f"no learning curve: {error}")
    try:
        made["video"] = _record(run_dir, env)
    except Exception as error:  # an environment's renderer may raise anything
        incident(f"no play video: {type(error).__name__}: {error}")
    return made


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
