"""Films a run's best policy in a process of its own.

    python -m qfleet.pictures.film_process RUN_DIR

Started by `artifacts.py` while the run still trains, so that modules and environment are there when
it says `film` on standard input. The answer is one line on standard output: nothing, or what went
wrong. It ends when its input ends: no run leaves it behind, however it ends itself.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from qfleet.api import load_policy, load_run_config, make_env
from qfleet.pictures.recording import record_play

FILM = "film"
VIDEO_FILE = "play.webp"
"""An animation that browsers and picture viewers play, encoded in a fifth of a second; VP9 takes
several. `qfleet play` records .mp4 and .webm at full size."""
MAX_FRAMES_PER_S = 17
"""Every third frame of CartPole: the run waits for this film."""
MAX_STEPS = 2_000
"""A longer episode is filmed up to here."""


def film(run_dir: Path, env: Any) -> Path:
    """One episode of the run's best policy in `env`, as `videos/play.webp`."""
    path = run_dir / "videos" / VIDEO_FILE
    path.parent.mkdir(exist_ok=True)
    act = load_policy(run_dir, allow_code=True).act  # of the run that started this
    return record_play(act, env, path, episodes=1, max_frames_per_s=MAX_FRAMES_PER_S).path


def main(arguments: list[str]) -> int:
    """Prepare, wait for the word, film; returns the exit code."""
    answer = _take_standard_output()
    run_dir = Path(arguments[0])
    try:
        import cv2  # noqa: F401  # a tenth of a second that nobody waits for yet

        config = load_run_config(run_dir)
        limit = config.eval.max_episode_steps
        longest = MAX_STEPS if limit == "auto" else min(limit, MAX_STEPS)
        env = make_env(config.env, render_mode="rgb_array", max_episode_steps=longest)
        if sys.stdin.readline().strip() != FILM:
            return 0
        threading.Thread(target=_end_with_the_run, daemon=True).start()
        film(run_dir, env)
        env.close()
    except Exception as error:  # an environment's renderer may raise anything
        reason = str(error).partition("\n")[0]
        print(f"{type(error).__name__}: {reason}", file=answer, flush=True)
        return 1
    return 0


def _take_standard_output() -> Any:
    """The answer's stream; what the environment prints goes nowhere."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    return answer


def _end_with_the_run() -> None:
    """The run keeps the other end of our input open for as long as it wants the film."""
    while sys.stdin.readline():
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
