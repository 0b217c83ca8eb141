"""Video and curve at a run's end: from a process and a thread that never outlive the run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from qfleet.pictures.artifacts import Artifacts
from qfleet.pictures.recording import read_frames
from qfleet.settings.config_loading import load_config
from qfleet.training import train

SOURCE = Path(__file__).resolve().parents[2] / "src"
END_TIMEOUT_S = 30.0
TINY = {
    "runtime": "local",
    "actors.count": 1,
    "actors.envs_per_actor": 2,
    "network.hidden_sizes": [8],
    "replay.min_size_to_sample": 100,
    "learner.batch_size": 16,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 10,
    "eval.episodes": 1,
    "eval.confirm_episodes": 1,
    "run.max_learner_steps": 10,
    "metrics.console": "none",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run without its video and curve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    train(load_config("cartpole", [], TINY), run_dir=tmp_path / "run")
    (tmp_path / "run" / "videos" / "play.webp").unlink()
    (tmp_path / "run" / "learning_curve.png").unlink()
    return tmp_path / "run"


def children():
    return psutil.Process().children(recursive=True)


def test_artifacts_film_and_plot_and_leave_nothing_running(run):
    incidents = []
    artifacts = Artifacts(run)
    artifacts.prepare()
    artifacts.prepare()
    assert len(children()) == 1
    artifacts.film()
    artifacts.plot()
    artifacts.wait(incidents.append)

    assert incidents == []
    assert len(read_frames(run / "videos" / "play.webp")) > 1
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert children() == []


def test_artifacts_prepared_in_vain_leave_neither_file_nor_process(run):
    incidents = []
    artifacts = Artifacts(run)
    artifacts.prepare()
    artifacts.wait(incidents.append)

    assert incidents == []
    assert list((run / "videos").iterdir()) == []
    assert children() == []


def test_artifacts_that_cannot_be_made_are_told_and_nothing_is_raised(run):
    incidents = []
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("id: CartPole-v1", "id: NoSuchEnv-v0"))
    (run / "monitor.csv").write_text("#{}\nr,l,t\nten,1,0.5\n")
    artifacts = Artifacts(run)
    artifacts.film()
    artifacts.plot()
    artifacts.wait(incidents.append)

    curve, video = incidents
    assert curve.startswith("no learning curve: could not convert string to float")
    assert video.startswith("no play video: ConfigError: env.id='NoSuchEnv-v0' is not registered")
    assert children() == []


def test_artifacts_that_take_too_long_are_given_up(run):
    incidents = []
    artifacts = Artifacts(run)
    artifacts.film()
    artifacts.wait(incidents.append, timeout_s=0.0)

    assert incidents == ["no play video: it took too long"]
    assert children() == []


@pytest.mark.parametrize("begun", ["prepare", "film"])
def test_film_process_ends_with_the_run_that_was_killed(run, begun):
    # The environment's steps wait for ever: the process can only end because the run is gone.
    (run.parent / "endless.py").write_text(
        textwrap.dedent(
            """
            import threading
            import gymnasium

            class Endless(gymnasium.Wrapper):
                def step(self, action):
                    threading.Event().wait()

            def make(render_mode=None):
                return Endless(gymnasium.make("CartPole-v1", render_mode=render_mode))
            """
        )
    )
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("factory: null", "factory: endless:make", 1))
    code = (
        "import os, psutil; from pathlib import Path;"
        "from qfleet.pictures.artifacts import Artifacts;"
        f"Artifacts(Path({str(run)!r})).{begun}();"
        "print(psutil.Process().children()[0].pid, flush=True); os._exit(9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=60,
    )
    assert killed.returncode == 9, killed.stderr
    try:
        film = psutil.Process(int(killed.stdout))
    except psutil.NoSuchProcess:
        return
    gone, _ = psutil.wait_procs([film], timeout=END_TIMEOUT_S)
    assert gone == [film]
