"""The command `qfleet train` as a user runs it: interrupted, resumed, and refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from qfleet.run_files.checkpoint_reader import newest_valid
from qfleet.run_files.run_lock import RunLock

SOURCE = Path(__file__).resolve().parents[2] / "src"
REFUSED_WITHIN_S = 3 * 2.0
"""Three times what is promised: the machine that tests may be slow and shared."""


@pytest.fixture
def ray_home():
    """An empty folder for Ray's files; its sockets need a short path."""
    path = Path(tempfile.mkdtemp(prefix="qf", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(ray_home):
    """Starts `qfleet` in a process group of its own, as a terminal does; none is left behind."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "RAY_TMPDIR": str(ray_home)}
    environment.pop("RAY_ADDRESS", None)
    started = []

    def run(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "qfleet", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def wait_for_learner_step(process, step):
    """Read the JSON lines of the console until the learner got that far."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "status" and event["learner_steps"] >= step:
            return event["learner_steps"]
    raise AssertionError(f"ended before learner step {step}: {process.stderr.read()}")


def interrupt(process, send):
    """Send a signal; returns the exit code, the last block and the processes that are left."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4, "a learner, a shard, an actor and Ray's own"
    commands = " ".join(word for child in children for word in child.cmdline())
    assert "raylet" in commands
    assert not any(f"{helper}.py" in commands for helper in ("dashboard", "monitor", "log_monitor"))
    send()
    out, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "finish", err
    return process.returncode, events[-1]["text"], alive


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_train_interrupted_and_terminated_commits_and_resumes(tmp_path, start, small_flags):
    run = tmp_path / "run"
    flags = [*small_flags, "--run.max_learner_steps", "1000000", "--metrics.console", "json"]
    flags = [*flags, "--eval.period_learner_steps", "100000"]
    process = start("train", *flags, "--run-dir", run)
    wait_for_learner_step(process, 100)
    # Ctrl-C reaches every process of the terminal's foreground group.
    code, text, alive = interrupt(process, lambda: os.killpg(process.pid, signal.SIGINT))
    assert code == 130
    assert text.startswith("Stopped CartPole-v1, not solved")
    assert "ended by   SIGINT" in text
    assert text.splitlines()[-1].strip() == "qfleet train --resume run"
    assert alive == []
    checkpoint, skipped = newest_valid(run / "checkpoints")
    summary = json.loads((run / "summary.json").read_text())
    assert skipped == []
    assert checkpoint.learner_step == summary["learner_steps"] >= 100
    assert (summary["status"], summary["exit_code"]) == ("stopped", 130)
    assert summary["accounting"]["produced"] == sum(
        value
        for name, value in summary["accounting"].items()
        if name not in ("produced", "at_least")
    )

    process = start("train", "--resume", "run")
    first = wait_for_learner_step(process, 1)
    assert first >= checkpoint.learner_step
    wait_for_learner_step(process, checkpoint.learner_step + 100)
    code, text, alive = interrupt(process, process.terminate)
    assert code == 143
    assert text.splitlines()[-1].strip() == "qfleet train --resume run"
    assert alive == []
    resumed = json.loads((run / "summary.json").read_text())
    assert resumed["run_id"] == summary["run_id"]
    assert resumed["learner_steps"] >= checkpoint.learner_step + 100
    assert resumed["env_steps"] > summary["env_steps"]
    assert newest_valid(run / "checkpoints")[0].learner_step == resumed["learner_steps"]


def wait_for_child(process, name):
    """The process called `name` below `process`, as soon as it is there."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        for child in parent.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.name() == name:
                    return child
        time.sleep(0.01)
    raise AssertionError(f"ended before it started {name}: {process.stderr.read()}")


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", ["gcs_server", "raylet"])
def test_train_stopped_while_ray_starts_leaves_a_summary_and_no_process(
    tmp_path, start, small_flags, started, number
):
    run = tmp_path / "run"
    process = start("train", *small_flags, "--metrics.console", "json", "--run-dir", run)
    wait_for_child(process, started)
    children = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches Ray's processes as well
    else:
        process.terminate()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number, err
    text = json.loads(out.splitlines()[-1])["text"]
    assert text.startswith("Stopped CartPole-v1, not solved")
    assert f"ended by   {number.name}" in text
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("stopped", 128 + number)
    assert summary["learner_steps"] == 0
    assert set(summary["phases_s"]) - {"shutdown"} == {"imports", "ray", "artifacts"}
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_train_local_terminated_commits_and_ends_with_143(tmp_path, start, small_flags):
    flags = [*small_flags, "--runtime", "local", "--run.max_learner_steps", "1000000"]
    process = start("train", *flags, "--metrics.console", "json", "--run-dir", tmp_path / "run")
    wait_for_learner_step(process, 50)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    text = json.loads(out.splitlines()[-1])["text"]
    assert text.splitlines()[-1].strip() == "qfleet train --resume run"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    checkpoint, _ = newest_valid(tmp_path / "run" / "checkpoints")
    assert checkpoint.learner_step == summary["learner_steps"] >= 50


# Refused before anything is started

_SMALL_REPLAY = ("--replay.capacity", 100, "--replay.min_size_to_sample", 50)
BAD = {
    "unknown key": (["--learner.lerning_rate", 1], ["learner.lerning_rate", "learning_rate"]),
    "wrong type": (["--actors.count", "many"], ["actors.count", "many"]),
    "two at once": (["--actors.n_step", 0, "--seed", -1], ["actors.n_step", "seed"]),
    "batch above capacity": (
        ["--learner.batch_size", 500, *_SMALL_REPLAY],
        ["learner.batch_size = 500", "replay.capacity (100)"],
    ),
    "misspelt environment": (["CartPol-v1"], ["CartPol-v1", "did you mean", "CartPole-v1"]),
    "continuous actions": (["Pendulum-v1"], ["Pendulum-v1", "action"]),
    "run directory below a file": (["--run-dir", "file/run"], ["file/run"]),
    "run directory with something else": (["--run-dir", "full"], ["full", "not empty"]),
    "run directory in use": (["--run-dir", "used"], ["used", str(os.getpid())]),
    "resume of no run": (["--resume", "nowhere"], ["nowhere", "no run"]),
    "asynchronous in one process": (
        ["--runtime", "local", "--run.schedule", "async"],
        ["run.schedule", "local"],
    ),
}


@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=BAD)
def test_train_refuses_bad_input_quickly_and_leaves_nothing(
    tmp_path, start, ray_home, words, named
):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "used").mkdir()
    lock = RunLock.acquire(tmp_path / "used")
    try:
        before = _tree(tmp_path)
        began_s = time.monotonic()
        process = start("train", *words)
        out, err = process.communicate(timeout=60)
        took_s = time.monotonic() - began_s
        after = _tree(tmp_path)
    finally:
        lock.release()
    assert process.returncode == 2, err
    for text in named:
        assert text in err
    assert "Traceback" not in err
    assert out == ""
    assert took_s < REFUSED_WITHIN_S
    # A lock file in a directory of the user's is all that a look at it may leave.
    assert {path for path in after if path.name != ".lock"} == {
        path for path in before if path.name != ".lock"
    }
    assert list(ray_home.iterdir()) == []


def _tree(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}
