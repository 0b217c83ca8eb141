"""Runs that something outside ends: whole process groups, single roles, Ray itself, the driver."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import faults
from fault_runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]


def test_sigterm_to_the_group_ends_like_sigterm_to_the_driver():
    with Run() as run:
        run.learns()
        os.killpg(run.process.pid, 15)
        took_s, answer = run.exits(143)
        assert answer == "exit 143, summary"
        assert took_s < 15.0
        # The last checkpoint was taken after the signal, with every role still there.
        summary = run.summary()
        assert summary["resumable"]
        newest = max(path.name for path in (run.directory / "checkpoints").glob("ckpt-*"))
        assert int(newest.split("-")[1]) == summary["learner_steps"]


def test_sigterm_to_an_actor_is_its_death():
    with Run() as run:
        run.learns()
        actor = run.role("ActorShell")
        actor.terminate()
        assert run.says("plays again") < 15.0
        assert not actor.is_running() or actor.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("service", [pytest.param("raylet", marks=pytest.mark.slow), "gcs_server"])
def test_cluster_that_is_gone_ends_the_run_with_5(service):
    with Run() as run:
        run.learns()
        run.role(service).kill()
        took_s, answer = run.exits(5)
        assert answer == "exit 5, summary"
        assert took_s < 60.0
        assert "the Ray cluster is gone" in run.summary()["stop_reason"]


def test_sigterm_beside_a_stopped_learner_ends_within_seconds():
    with Run() as run:
        run.learns()
        run.role("LearnerShell").suspend()
        run.process.terminate()
        took_s, answer = run.exits(143)
        assert answer == "exit 143, summary"
        assert took_s < 15.0


def test_killed_driver_leaves_neither_processes_nor_files():
    [(_, within_s, took_s, _)] = list(faults.killed_driver(["training"]))
    assert took_s < within_s
