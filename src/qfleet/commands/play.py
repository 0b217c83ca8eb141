"""`qfleet play [RUN]`: show a trained policy in a window, or record it with what it sees."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from qfleet.common.errors import ConfigError
from qfleet.common.seeding import seed_int
from qfleet.pictures.agent_view import AgentView, action_names
from qfleet.pictures.recording import check_video_path, record_play
from qfleet.run_files.find_runs import find_run, resolve_run, shorten
from qfleet.run_files.resume import load_saved_config

DEFAULT_EPISODES = 1


def main(args: argparse.Namespace) -> int:
    """Play `args.run` for `args.episodes` from `args.seed`, into `args.video` if given.

    Returns:
        The exit code, 0; errors are raised.
    """
    episodes = args.episodes or DEFAULT_EPISODES
    seed = seed_int(0, "play") if args.seed is None else args.seed
    video = Path(args.video).expanduser() if args.video else None
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes} (--episodes)")
    if video is not None:
        check_video_path(video)
    params_path = resolve_run(args.run)
    run_dir = find_run(params_path)
    wanted = _Wanted(run_dir, params_path, episodes, seed, args.allow_code)
    why_recorded = None if video is not None else _why_no_window(run_dir)
    if why_recorded is not None:
        video = default_video(run_dir, params_path)
        print(f"{why_recorded}: recording instead of opening a window")
    if video is None:
        return _show(wanted)
    return _record(wanted, video)


def _why_no_window(run_dir: Path) -> str | None:
    """A film shows what an agent sees beside the game; of a state a window says as much."""
    if not has_display():
        return "no display found"
    if load_saved_config(run_dir).env.observation != "state":
        return "the agent sees frames"
    return None


def has_display() -> bool:
    """Whether a window could be opened; on Linux that takes an X or Wayland server."""
    if os.environ.get("SDL_VIDEODRIVER") in ("dummy", "offscreen"):
        return False
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def default_video(run_dir: Path, params_path: Path) -> Path:
    """`RUN/videos/play-best.mp4`, or with the checkpoint's name instead of `best`."""
    return run_dir / "videos" / f"play-{params_path.parent.name}.mp4"


class _Wanted(NamedTuple):
    """What to play."""

    run_dir: Path
    params_path: Path
    episodes: int
    seed: int
    allow_code: bool


def _load(wanted: _Wanted, render_mode: str) -> tuple[Any, Any]:
    # pygame reads both when it is imported, which the environment does.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if render_mode == "rgb_array" and not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import qfleet

    allow_code = wanted.allow_code
    policy = qfleet.load_policy(wanted.params_path, allow_code=allow_code)
    return policy, qfleet.make_env(wanted.run_dir, render_mode, allow_code=allow_code)


def _record(wanted: _Wanted, video: Path) -> int:
    policy, env = _load(wanted, "rgb_array")
    try:
        view = AgentView(policy.q_values, policy.spec, action_names(env))
        recording = record_play(
            policy.act, env, video, episodes=wanted.episodes, seed=wanted.seed, view=view
        )
    finally:
        env.close()
    for episode, episode_return in enumerate(recording.returns, start=1):
        print(f"episode {episode}: return {episode_return:g}")
    print(f"{shorten(recording.path)} ({recording.frames} frames)")
    if recording.remark:
        print(recording.remark)
    return 0


def _show(wanted: _Wanted) -> int:
    policy, env = _load(wanted, "human")
    try:
        for episode in range(1, wanted.episodes + 1):
            observation, _ = env.reset(seed=wanted.seed if episode == 1 else None)
            episode_return, is_over = 0.0, False
            while not is_over:
                observation, reward, terminated, truncated, _ = env.step(
                    int(policy.act(observation))
                )
                episode_return += float(reward)
                is_over = bool(terminated or truncated)
            print(f"episode {episode}: return {episode_return:g}", flush=True)
    finally:
        env.close()
    return 0
