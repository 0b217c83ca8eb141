"""`qfleet status` on runs in every state, and `qfleet play` without a screen."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import qfleet
from qfleet.commands import play as commands_play
from qfleet.commands import status as commands_status
from qfleet.commands.status import run_status, status_text
from qfleet.common.errors import ConfigError
from qfleet.common.types import EnvironmentSpec
from qfleet.pictures.recording import NO_H264, read_frames
from qfleet.run_files.checkpoint import PARAMS_FILE
from qfleet.run_files.find_runs import CONFIG_FILE
from qfleet.run_files.metrics import MetricsWriter
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import (
    Accounting,
    FleetTables,
    RoleRow,
    RunSummary,
    ShardRow,
    SlotRow,
    write_fleet_tables,
    write_summary,
)
from qfleet.settings.config import Config


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start_run(where: str = "out") -> RunDirectory:
    run = RunDirectory.create(Config(), where)
    run.write_config("seed: 1\n")
    return run


def fill(run: RunDirectory) -> None:
    writer = MetricsWriter(run.path, env_id="x", t_start_s=0.0, tensorboard=False)
    first = {"rollout/return_mean": 21.5, "eval/return_mean": 30.25}
    writer.write(first, env_steps=500, learner_steps=50, wall_s=1.0)
    writer.write({"rollout/return_mean": 22.5}, env_steps=1234, learner_steps=99, wall_s=65.0)
    writer.close()
    checkpoint = run.write_checkpoint(
        learner_step=90, generation=2, files={PARAMS_FILE: [b"x"]}, manifest={}, keep=3
    )
    os.utime(checkpoint, (1000, 1000))
    os.utime(run.path / "metrics.jsonl", (1030, 1030))


def write_outcome(run: RunDirectory, **changes: Any) -> None:
    fields: dict[str, Any] = {
        name: 0 if info.annotation in (int, float) else "x"
        for name, info in RunSummary.model_fields.items()
        if info.is_required()
    }
    fields |= {
        "status": "solved",
        "resumable": True,
        "solved": True,
        "solved_at_env_step": 7,
        "eval_return_mean": 1.0,
        "eval_return_std": 0.0,
        "samples_per_insert": None,
        "accounting": Accounting(),
        "versions": {},
    }
    write_summary(RunSummary(**(fields | changes)), run.path)


def test_status_of_a_running_run_names_process_and_newest_values() -> None:
    with start_run() as run:
        fill(run)
        status = run_status(run.path, now_s=1060.0)

    assert (status["state"], status["pid"]) == ("running", os.getpid())
    assert (status["env_steps"], status["learner_steps"], status["wall_s"]) == (1234, 99, 65.0)
    assert (status["rollout_return_mean"], status["eval_return_mean"]) == (22.5, 30.25)
    assert (status["last_row_age_s"], status["last_checkpoint_age_s"]) == (30.0, 60.0)
    assert (status["checkpoints"], status["last_checkpoint"]) == (1, "ckpt-000000000090-2")
    assert status["exit_code"] is None


def test_status_of_a_resumed_run_ignores_the_old_summary() -> None:
    with start_run() as run:
        write_outcome(run)
        assert run_status(run.path, now_s=0.0)["state"] == "running"
        assert run_status(run.path, now_s=0.0)["solved"] is None


def test_status_of_ended_runs_comes_from_the_summary_or_its_absence() -> None:
    with start_run() as run:
        fill(run)
    assert run_status(run.path, now_s=1060.0)["state"] == "ended without a summary"
    write_outcome(run, env_steps=2000, learner_steps=123)

    status = run_status(run.path, now_s=1060.0)

    assert (status["env_steps"], status["learner_steps"]) == (2000, 123)
    assert (status["state"], status["solved"], status["exit_code"]) == ("solved", True, 0)
    assert (status["pid"], status["host"]) == (None, None)


def test_status_shows_shards_and_slots_of_runs_that_go_on_and_that_have_ended() -> None:
    shard = ShardRow(inserted=1200, sampled=9000, resident=800, held_s=1.25)
    slot = SlotRow(slot=3, env_steps=1300, produced=1210, incarnation=2)
    with start_run() as run:
        fill(run)
        assert run_status(run.path, now_s=0.0)["slots"] == []
        write_fleet_tables(FleetTables(shards=[shard], slots=[slot]), run.path)
        going = run_status(run.path, now_s=0.0)
    write_outcome(run, shards=[shard, shard], slots=[slot])
    ended = run_status(run.path, now_s=0.0)

    assert (going["shards"], going["slots"]) == ([shard.model_dump()], [slot.model_dump()])
    assert ended["shards"] == 2 * [shard.model_dump()]
    lines = status_text(going).splitlines()
    expected = "1,200 inserted, 9,000 sampled, 800 resident, held back for 1.2 s"
    assert f"shard 0            {expected}" in lines
    assert "actor 3            1,300 env steps, 1,210 transitions, incarnation 2" in lines


def test_status_of_a_live_run_shows_every_role_with_host_rate_and_wait() -> None:
    rows = [
        RoleRow(
            role="learner", host="box", pid=7, rate=1234.5, unit="updates/s", waits_for="actors"
        ),
        RoleRow(role="actor-0", host="h2", pid=8, rate=900.0, unit="env steps/s", waits_for=""),
        RoleRow(role="actor-1", host="", pid=0, rate=0, unit="", waits_for="room in the cluster"),
    ]
    with start_run() as run:
        fill(run)
        write_fleet_tables(FleetTables(roles=rows), run.path)
        status = run_status(run.path, now_s=0.0)
    assert status["roles"] == [row.model_dump() for row in rows]
    lines = status_text(status).splitlines()
    assert "learner            box (process 7), 1,234 updates/s, waits for actors" in lines
    assert "actor-0            h2 (process 8), 900 env steps/s" in lines
    assert "actor-1            not there; waits for room in the cluster" in lines
    # Of a run that has ended nobody does anything any more.
    assert run_status(run.path, now_s=0.0)["roles"] == []


def test_status_text_shows_what_is_known_in_aligned_lines() -> None:
    with start_run() as run:
        fill(run)
        text = status_text(run_status(run.path, now_s=1060.0))
    lines = text.splitlines()

    assert lines[0] == "run                out"
    assert lines[1].startswith(f"state              running (process {os.getpid()} on ")
    assert lines[2:] == [
        "env steps          1,234",
        "learner steps      99",
        "trained for        1 m 05 s",
        "rollout return     22.5",
        "evaluation return  30.2",
        "last metrics       30 s ago",
        "last checkpoint    ckpt-000000000090-2, 1 m 00 s ago",
    ]


def test_status_of_a_run_that_wrote_nothing_yet() -> None:
    start_run().close()

    text = status_text(run_status(Path("out"), now_s=0.0))

    assert text.splitlines()[-2:] == [
        "trained for        0 s",
        "last checkpoint    none yet",
    ]


def test_status_main_prints_json_of_the_latest_run(capsys: pytest.CaptureFixture[str]) -> None:
    with start_run() as run:
        fill(run)

    code = commands_status.main(argparse.Namespace(run=None, json=True))

    printed = json.loads(capsys.readouterr().out)
    assert (code, printed["run_dir"], printed["env_steps"]) == (0, "out", 1234)


def test_status_main_without_a_run_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="there are no runs"):
        commands_status.main(argparse.Namespace(run="gone", json=False))


class _Env:
    metadata = {"render_fps": 10}  # noqa: RUF012  (as Gymnasium has it)

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False
        self.unwrapped = self

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(1), 1.0, False, self.steps == 3, {}

    def render(self) -> Any:
        return np.zeros((240, 320, 3), dtype=np.uint8)

    def close(self) -> None:
        self.closed = True


class _Policy:
    spec = EnvironmentSpec("", (1,), "<f4", 2, None, None)

    def act(self, observation: Any) -> int:
        return 1

    def q_values(self, observation: Any) -> Any:
        return np.array([0.5, 1.5], np.float32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run with a best checkpoint, and what `play` asked the Python interface for."""
    with start_run() as run:
        run.write_best(learner_step=1, generation=1, files={PARAMS_FILE: [b"x"]}, manifest={})
    asked: dict[str, Any] = {"env": _Env()}

    def make_env(run_dir: Path, render_mode: str, *, allow_code: bool) -> _Env:
        asked.update(run_dir=run_dir, render_mode=render_mode, env_code=allow_code)
        return asked["env"]  # type: ignore[no-any-return]

    def load_policy(path: Path, *, allow_code: bool) -> _Policy:
        asked.update(params=path, network_code=allow_code)
        return _Policy()

    monkeypatch.setattr(qfleet, "make_env", make_env, raising=False)
    monkeypatch.setattr(qfleet, "load_policy", load_policy, raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return asked


_PLAY = {"run": None, "video": None, "episodes": 2, "seed": 3, "allow_code": False}


def play_arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**(_PLAY | changes))


def test_play_without_display_records_into_the_run(
    made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands_play.main(play_arguments()) == 0

    assert (made["run_dir"], made["render_mode"]) == (Path("out"), "rgb_array")
    assert made["params"] == Path("out/best") / PARAMS_FILE
    assert made["env"].closed
    assert len(read_frames(Path("out/videos/play-best.mp4"))) == 8
    shown = capsys.readouterr().out
    assert shown.removesuffix(f"{NO_H264}\n") == (  # said where the build has no H.264
        "no display found: recording instead of opening a window\n"
        "episode 1: return 3\nepisode 2: return 3\nout/videos/play-best.mp4 (8 frames)\n"
    )


def test_play_with_display_shows_a_window(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setenv("DISPLAY", ":0")

    assert commands_play.main(play_arguments()) == 0

    assert made["render_mode"] == "human"
    assert made["env"].closed
    assert not Path("out/videos").exists()
    assert capsys.readouterr().out == "episode 1: return 3\nepisode 2: return 3\n"


@pytest.mark.parametrize("observation", ["pixels", "planes"])
def test_play_with_display_records_an_agent_that_sees_frames(
    made: dict[str, Any],
    observation: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A window cannot show them, and an environment that draws its own has no window to give."""
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setenv("DISPLAY", ":0")
    file = Path("out") / CONFIG_FILE
    config = yaml.safe_load(file.read_text())
    config["env"] = {"observation": observation}
    file.write_text(yaml.safe_dump(config))

    assert commands_play.main(play_arguments()) == 0

    assert made["render_mode"] == "rgb_array"
    assert len(read_frames(Path("out/videos/play-best.mp4"))) == 8
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "the agent sees frames: recording instead of opening a window"


def test_play_with_video_records_there_even_with_a_display(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")

    commands_play.main(play_arguments(video="film.webp", run="out/best"))

    assert made["render_mode"] == "rgb_array"
    assert len(read_frames(Path("film.webp"))) == 8


@pytest.mark.parametrize("allow_code", [False, True])
def test_play_hands_on_whether_code_may_be_imported(made: dict[str, Any], allow_code: bool) -> None:
    commands_play.main(play_arguments(video="film.webp", allow_code=allow_code))

    assert (made["network_code"], made["env_code"]) == (allow_code, allow_code)


def test_play_wrong_arguments_are_refused_before_anything_is_loaded(made: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--video"):
        commands_play.main(play_arguments(video="film.avi"))
    with pytest.raises(ConfigError, match="got -1"):
        commands_play.main(play_arguments(episodes=-1))

    assert "params" not in made
