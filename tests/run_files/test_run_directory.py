"""Where a run's files lie, who may write them, and what RUN means."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qfleet.common.config import EnvConfig
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run_files import run_directory, run_lock
from qfleet.run_files.checkpoint import MANIFEST, PARAMS_FILE
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.run_files.find_runs import find_run, holds_run, resolve_run
from qfleet.run_files.run_directory import RunDirectory, environment_report
from qfleet.run_files.run_lock import RunLock, live_owner
from qfleet.settings.config import Config, RunConfig


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_python(code: str, **options: Any) -> subprocess.Popen[bytes]:
    source = str(Path(run_directory.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, **options
    )


def make_run(where: str | None = None, **config: object) -> Path:
    with RunDirectory.create(Config(**config), where) as run:
        run.write_config("seed: 1\n")
        return run.path


def add_checkpoint(run: RunDirectory, step: int, generation: int, keep: int = 3) -> Path:
    files = {PARAMS_FILE: [f"params {step}".encode()]}
    return run.write_checkpoint(
        learner_step=step, generation=generation, files=files, manifest={}, keep=keep
    )


def add_best(run: RunDirectory, step: int) -> Path:
    files = {PARAMS_FILE: [f"best {step}".encode()]}
    return run.write_best(learner_step=step, generation=1, files=files, manifest={"score": 1.5})


def test_create_default_name_holds_env_preset_seed_and_time(tmp_path: Path) -> None:
    path = make_run(env=EnvConfig(id="ALE/Pong-v5"), seed=7)

    assert re.fullmatch(r"runs/ALE-Pong-v5__cartpole__s7__\d{8}-\d{6}", str(path))
    assert os.readlink("runs/latest") == path.name
    assert (tmp_path / "runs" / "latest" / "config.yaml").read_text() == "seed: 1\n"


def test_create_same_second_gets_a_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory.time, "strftime", lambda _: "20260102-030405")

    names = [make_run().name for _ in range(3)]

    stem = "CartPole-v1__cartpole__s1__20260102-030405"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert os.readlink("runs/latest") == f"{stem}-3"


def test_create_explicit_directory_wins_over_run_dir_and_is_linked() -> None:
    path = make_run("deep/er/out", run=RunConfig(dir="other"))

    assert path == Path("deep/er/out")
    assert not Path("other").exists()
    assert os.readlink("runs/latest") == "../deep/er/out"
    assert make_run(run=RunConfig(dir="other")) == Path("other")


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://b", "file:///tmp/x", "s3:/bucket"])
def test_create_url_is_refused_with_remedy(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is a URL.*run\.dir.*mount the bucket"):
        RunDirectory.create(Config(), url)
    with pytest.raises(ConfigError, match="is a URL"):
        find_run(url)
    assert os.listdir() == []


def test_create_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        RunDirectory.create(Config(), "file/run")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        RunDirectory.create(Config(), "file")


def test_create_full_disk_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(ConfigError, match="No space left"):
        RunDirectory.create(Config(), "out")


def test_create_directory_with_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")

    with pytest.raises(ConfigError, match=r"not empty and holds no qfleet run \(thesis.tex"):
        RunDirectory.create(Config(), "mine")

    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert not (tmp_path / "runs").exists()


def test_create_directory_with_a_run_is_refused_with_the_resume_line() -> None:
    make_run("out")

    with pytest.raises(ConfigError, match=r"holds a run already.*--resume out"):
        RunDirectory.create(Config(), "out")

    RunDirectory.open_for_resume("out").close()  # the refusal gave the lock back


def test_create_again_after_a_start_that_wrote_nothing_works() -> None:
    RunDirectory.create(Config(), "out").close()

    RunDirectory.create(Config(), "out").close()


def test_directory_in_use_is_refused_naming_host_and_process() -> None:
    with RunDirectory.create(Config(), "out") as run:
        run.write_config("")
        owner = live_owner(run.path)
        assert owner is not None
        expected = f"in use by process {os.getpid()} on {owner.host}"
        with pytest.raises(ConfigError, match=re.escape(expected)):
            RunDirectory.create(Config(), "out")
        with pytest.raises(ConfigError, match=re.escape(expected)):
            RunDirectory.open_for_resume("out")

    assert live_owner(Path("out")) is None
    RunDirectory.open_for_resume("out").close()


def test_lock_of_a_killed_process_is_taken_over() -> None:
    make_run("out")
    code = (
        "from qfleet.run_files.run_lock import RunLock; from pathlib import Path; import sys;"
        "lock = RunLock.acquire(Path('out')); print('held', flush=True); sys.stdin.read()"
    )
    holder = run_python(code, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    owner = live_owner(Path("out"))
    assert owner is not None
    assert owner.pid == holder.pid
    with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
        RunDirectory.open_for_resume("out")

    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)

    assert live_owner(Path("out")) is None
    with RunDirectory.open_for_resume("out") as run:
        owner = live_owner(run.path)
        assert owner is not None
        assert owner.pid == os.getpid()


@pytest.mark.parametrize(
    ("host", "pid", "started", "is_free"),
    [
        ("here", "own", "own", False),
        ("here", "own", "1", True),  # the pid lives, but it is another process now
        ("here", 2**22 + 1, "1", True),
        ("elsewhere", 1, "1", False),
    ],
)
def test_lock_without_kernel_support_goes_by_the_text(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
    pid: int | str,
    started: str,
    is_free: bool,
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "here")
    own = os.getpid()
    text = {
        "host": host,
        "pid": own if pid == "own" else pid,
        "started": run_lock.process_start(own) if started == "own" else started,
    }
    (tmp_path / ".lock").write_text(json.dumps(text))

    if is_free:
        RunLock.acquire(tmp_path).release()
    else:
        with pytest.raises(ConfigError, match=f"in use by process {text['pid']} on {host}"):
            RunLock.acquire(tmp_path)


def test_checkpoints_move_latest_and_are_pruned() -> None:
    with RunDirectory.create(Config(), "out") as run:
        run.write_config("")
        for step in range(1, 5):
            add_checkpoint(run, step, step, keep=2)

        assert os.readlink("out/latest") == "checkpoints/ckpt-000000000004-4"
        assert sorted(os.listdir("out/checkpoints")) == [
            "ckpt-000000000003-3",
            "ckpt-000000000004-4",
        ]
        assert read_checkpoint(run.latest_path).open(PARAMS_FILE) == b"params 4"


def test_best_is_replaced_whole_and_checked() -> None:
    with RunDirectory.create(Config(), "out") as run:
        for step in (1, 2):
            add_best(run, step)

        loaded = read_checkpoint(run.best_path)

        assert loaded.names == [PARAMS_FILE]
        assert loaded.open(PARAMS_FILE) == b"best 2"
        assert (loaded.learner_step, loaded.manifest["score"]) == (2, 1.5)
        assert sorted(os.listdir("out/best")) == [MANIFEST, PARAMS_FILE]
        assert sorted(os.listdir("out")) == [".lock", "best"]


@pytest.mark.parametrize("rename", [0, 1])
def test_best_killed_in_the_exchange_is_found_and_put_back(
    monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    class Killed(BaseException):
        pass

    calls = 0
    original = os.rename

    def crashing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > rename:
            raise Killed
        original(source, target)

    run = RunDirectory.create(Config(), "out")
    run.write_config("")
    add_best(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(run_directory.os, "rename", crashing)
        patch.setattr(run_directory.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            add_best(run, 2)
    run.close()

    assert resolve_run("out").read_bytes() == b"best 1"
    with RunDirectory.open_for_resume("out") as run:
        assert read_checkpoint(run.best_path).open(PARAMS_FILE) == b"best 1"
        assert sorted(os.listdir("out")) == [".lock", "best", "config.yaml"]


def test_best_full_disk_keeps_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunDirectory.create(Config(), "out") as run:
        add_best(run, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match="No space left"):
                add_best(run, 2)
        assert read_checkpoint(run.best_path).open(PARAMS_FILE) == b"best 1"
        assert sorted(os.listdir("out")) == [".lock", "best"]


def test_open_for_resume_removes_unfinished_attempts_and_becomes_latest() -> None:
    make_run("first")
    make_run("second")
    Path("first/checkpoints/.tmp-ckpt-000000000001-1").mkdir(parents=True)
    Path("first/.tmp-summary.json").write_text("{")

    with RunDirectory.open_for_resume("first"):
        assert os.listdir("first/checkpoints") == []
        assert not Path("first/.tmp-summary.json").exists()
        assert os.readlink("runs/latest") == "../first"


def test_command_lines_accumulate() -> None:
    with RunDirectory.create(Config(), "out") as run:
        run.write_command(["qfleet", "train", "--env.kwargs", '{"a": 1}'])
        run.write_command(["qfleet", "train", "--resume", "out"])

    assert Path("out/cmd.txt").read_text() == (
        "qfleet train --env.kwargs '{\"a\": 1}'\nqfleet train --resume out\n"
    )


def test_resolve_run_understands_every_form(tmp_path: Path) -> None:
    with RunDirectory.create(Config()) as run:
        run.write_config("")
        add_best(run, 1)
        kept = add_checkpoint(run, 2, 1)
        path = run.path
    best = path / "best" / PARAMS_FILE

    assert resolve_run(None) == best
    assert resolve_run(path) == best
    assert resolve_run(str(path.absolute())) == best
    assert resolve_run(path.name) == best  # a name under runs/
    assert resolve_run("runs/latest") == best
    assert resolve_run(path / "best") == best
    assert resolve_run(best) == best
    assert resolve_run(path / "latest") == kept / PARAMS_FILE
    assert resolve_run("runs/latest/latest") == kept / PARAMS_FILE
    assert resolve_run(kept) == kept / PARAMS_FILE


def test_find_run_from_inside_a_run_finds_it() -> None:
    with RunDirectory.create(Config(), "out") as run:
        run.write_config("")
        kept = add_checkpoint(run, 1, 1)

    for argument in ("out", kept, kept / PARAMS_FILE, "out/latest", None):
        assert find_run(argument) == Path("out")
    assert holds_run("out")
    assert not holds_run("out/checkpoints")


def test_resolve_run_without_evaluation_points_to_the_last_checkpoint() -> None:
    with RunDirectory.create(Config(), "out") as run:
        run.write_config("")
        with pytest.raises(ConfigError, match="no checkpoint either"):
            resolve_run("out")
        add_checkpoint(run, 1, 1)
        with pytest.raises(ConfigError, match=r"out has no best/.*use out/latest"):
            resolve_run("out")


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (4, r"it diverged before the first evaluation \(training diverged: NaN\)"),
        (143, r"it ended before the first evaluation \(training diverged: NaN\)"),
        (None, "nothing was evaluated yet"),
    ],
)
def test_resolve_run_that_ended_early_says_how_and_names_the_newest_that_can_be_played(
    exit_code: int | None, words: str
) -> None:
    """Bare `play` and `eval` after a diverged run: `runs/latest` is that one."""
    for name in ("runs/older", "runs/newer", "runs/diverged"):
        with RunDirectory.create(Config(), name) as run:
            run.write_config("")
            stamp = 1_000 + len(name)
            os.utime(run.config_path, (stamp, stamp))
            if name != "runs/diverged":
                blocks = {PARAMS_FILE: [b"x"]}
                run.write_best(learner_step=1, generation=1, files=blocks, manifest={})
    os.utime("runs/newer/config.yaml", (2_000, 2_000))
    if exit_code is not None:
        text = {"exit_code": exit_code, "stop_reason": "training diverged: NaN\nmore"}
        Path("runs/diverged/summary.json").write_text(json.dumps(text))

    with pytest.raises(ConfigError, match=rf"^runs/diverged has no best/: {words}; .*runs/newer$"):
        resolve_run(None)


def test_missing_run_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"runs/latest does not exist.*`qfleet train`"):
        resolve_run(None)
    older, newer = make_run(seed=1), make_run(seed=2)
    os.utime(older / "config.yaml", (1, 1))

    with pytest.raises(ConfigError) as caught:
        RunDirectory.open_for_resume("nowhere")

    assert str(caught.value) == (
        f"nowhere is no run, nor inside one. Runs that exist, newest first:\n  {newer}\n  {older}"
    )
    assert caught.value.exit_code == 2


def test_environment_report_names_versions_without_importing() -> None:
    code = (
        "import sys, json; from qfleet.run_files.run_directory import environment_report;"
        "r = environment_report();"
        "print(json.dumps([r, [m for m in ('torch', 'ray', 'gymnasium') if m in sys.modules]]))"
    )
    output, _ = run_python(code).communicate(timeout=60)
    report, imported = json.loads(output)

    assert imported == []
    assert report == environment_report()
    assert list(report) == ["python", "qfleet", "torch", "ray", "gymnasium", "numpy"]
    assert re.match(r"\d+\.\d+", report["numpy"])
