"""`qfleet scale`: what it refuses, and that it waits for the driver."""

from __future__ import annotations

import json
import threading
import time

import pytest

from qfleet.command_line.cli import main
from qfleet.commands import scale
from qfleet.run_files.live.scale_request import is_scale_request_open, take_scale_request
from qfleet.run_files.run_directory import RunDirectory
from qfleet.settings.config import Config
from qfleet.settings.config_loading import dump_yaml


@pytest.fixture
def start_run(tmp_path, monkeypatch):
    """A run directory that this process holds, as a driver does."""
    monkeypatch.chdir(tmp_path)

    def start(**sections):
        run = RunDirectory.create(Config(), "out")
        run.write_config(dump_yaml(Config.model_validate(sections)))
        return run

    return start


@pytest.mark.parametrize("actors", [8, 1])
def test_request_that_the_driver_takes_is_reported(start_run, capsys, actors):
    taken = []

    def drive():
        while not taken:
            found = take_scale_request(run.path)
            if found is not None:
                taken.append(found)
            time.sleep(0.01)

    with start_run(replay={"shards": 2}) as run:  # fewer actors than shards: one of them rests
        driver = threading.Thread(target=drive)
        driver.start()
        code = main(["scale", "out", "--actors", str(actors)])
        driver.join()
    assert (code, taken) == (0, [actors])
    said = f"out: {actors} actors are wanted now; `qfleet status out` shows them\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("sections", "actors", "words"),
    [
        ({"runtime": "local"}, "4", ["runs in lockstep", "run.schedule"]),
        ({"run": {"schedule": "lockstep"}}, "4", ["runs in lockstep"]),
        ({"actors": {"min_count": 2}}, "1", ["at least 2", "got 1", "actors.min_count"]),
    ],
)
def test_run_that_cannot_have_so_many_is_refused(start_run, capsys, sections, actors, words):
    with start_run(**sections) as run:
        code = main(["scale", "out", "--actors", actors])
        assert not is_scale_request_open(run.path)
    said = capsys.readouterr().err
    assert code == 2
    assert [word for word in words if word not in said] == []


def test_run_that_is_not_alive_is_refused_with_the_way_on(start_run, capsys):
    start_run().close()
    code = main(["scale", "out", "--actors", "8"])
    said = capsys.readouterr().err
    assert code == 2
    assert "out is not alive" in said
    assert "qfleet train --resume out --actors.count 8" in said


def test_driver_that_takes_no_request_is_an_error_in_time(start_run, capsys, monkeypatch):
    monkeypatch.setattr(scale, "TAKEN_TIMEOUT_S", 0.3)
    with start_run() as run:
        code = main(["scale", "out", "--actors", "8"])
        assert not is_scale_request_open(run.path)
        assert "try again" in capsys.readouterr().err
        # The driver is on a host that only shares the directory by name.
        owner = json.loads((run.path / ".lock").read_text())
        (run.path / ".lock").write_text(json.dumps(owner | {"host": "elsewhere"}))
        assert main(["scale", "out", "--actors", "8"]) == 2
        assert "run the command on elsewhere" in capsys.readouterr().err
    assert code == 2


@pytest.mark.parametrize("words", [[], ["out"], ["out", "--actors", "0"], ["out", "--actors", "x"]])
def test_words_that_are_missing_or_wrong_are_exit_2(start_run, words):
    assert main(["scale", *words]) == 2
