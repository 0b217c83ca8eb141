"""A study as a user runs it: tiny runs, interrupted and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qfleet.command_line.cli import main
from qfleet.settings.yaml_settings import load_plain
from qfleet.studies import study_forecast
from qfleet.studies.definition import load_study
from qfleet.studies.runner import arms_of, cells, nested, start

SOURCE = Path(__file__).resolve().parents[2] / "src"
STUDY = """\
title: Two steps
preset: cartpole
seeds: 2
overrides: {run.max_learner_steps: 200, learner.compile: "off"}
arms:
  small: {}
  larger: {learner.learning_rate: 0.04}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(STUDY)
    return file


def test_cells_are_every_arm_of_a_seed_before_the_next_seed(study_file) -> None:
    study = load_study(str(study_file), {})

    grid = cells(study, Path("out"))

    assert [(cell.arm, cell.seed) for cell in grid] == [
        ("small", 1),
        ("larger", 1),
        ("small", 2),
        ("larger", 2),
    ]
    assert grid[1].path == Path("out/larger/seed-1")


def test_nested_settings_are_a_configuration_file() -> None:
    assert nested({"runtime": "local", "learner.loss": "mse", "learner.momentum": 0}) == {
        "runtime": "local",
        "learner": {"loss": "mse", "momentum": 0},
    }


@pytest.mark.timeout(180)
def test_study_runs_every_cell_and_is_not_repeated(
    study_file, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("qfleet.studies.study_forecast.PROBE_S", 0.5)
    out = tmp_path / "out"
    words = ["study", str(study_file), "--out", str(out), "--jobs", "2", "--seeds", "1"]

    assert main(words) == 0
    first = capsys.readouterr().out
    assert main([*words[:-1], "2"]) == 0
    second = capsys.readouterr().out

    assert "forecast: about" in first
    assert "0 of 2 runs are there" in first
    assert "2 of 4 runs are there" in second
    arms = arms_of(load_study(str(study_file), {}), out, "en")
    assert [[run.seed for run in arm.runs] for arm in arms] == [[1, 2], [1, 2]]
    assert all(run.learner_steps == 200 and run.is_complete for arm in arms for run in arm.runs)
    assert [arm.runs[0].config["learner.learning_rate"] for arm in arms] == [0.03, 0.04]
    assert (out / "report.html").is_file()


def test_forecast_of_a_run_that_does_not_come_to_its_end_is_unknown(
    study_file, tmp_path, monkeypatch
) -> None:
    """On a machine with much else to do: the study goes on without a forecast."""
    monkeypatch.setattr(study_forecast, "PROBE_TIMEOUT_S", 0.01)
    study = load_study(str(study_file), {})

    seconds, reason = study_forecast.forecast(study, cells(study, tmp_path), 1)

    assert (seconds, reason) == (None, "within 0.01 s the first run has learned nothing")
    assert study_forecast.forecast(study, [], 1).seconds == 0.0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_study_ends_its_runs_and_says_how_to_go_on(
    study_file, tmp_path, number, code
) -> None:
    study_file.write_text(STUDY.replace("max_learner_steps: 200", "max_wall_s: 600"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qfleet", "study", str(study_file), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = [out / arm / "seed-1" / "metrics.jsonl" for arm in ("small", "larger")]
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and not all(
        file.is_file() and file.stat().st_size for file in metrics
    ):
        time.sleep(0.1)

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == code
    assert "the same command goes on from here: qfleet study" in output
    for file in metrics:
        summary = json.loads((file.parent / "summary.json").read_text())
        assert (summary["status"], summary["exit_code"]) == ("stopped", 130)
        assert summary["resumable"]


def test_run_starts_from_its_arms_preset(study_file, tmp_path, monkeypatch) -> None:
    study_file.write_text(STUDY.replace("larger: {", "larger: {preset: apex, "))
    commands = []
    monkeypatch.setattr(
        "qfleet.studies.runner.subprocess.Popen", lambda command, **_: commands.append(command)
    )
    study = load_study(str(study_file), {})

    for cell in cells(study, tmp_path)[:2]:
        start(study, cell)

    assert [command[3:5] for command in commands] == [["train", "cartpole"], ["train", "apex"]]
    settings = [load_plain(Path(command[6]).read_text(), "s") for command in commands]
    assert [s["learner"].get("learning_rate") for s in settings] == [None, 0.04]
    assert not any("preset" in s for s in settings)


def test_study_with_a_mistake_starts_nothing(study_file, tmp_path, capsys) -> None:
    study_file.write_text(STUDY.replace("0.04", "fast"))

    assert main(["study", str(study_file), "--out", str(tmp_path / "out")]) == 2

    assert "arm 'larger'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
