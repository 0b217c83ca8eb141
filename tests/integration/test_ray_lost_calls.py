"""A run whose calls are lost, one in so many, on their way there or back, in a Ray of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

pytestmark = [pytest.mark.ray]


@pytest.mark.timeout(170)
@pytest.mark.parametrize("percent", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_lost_calls_restart_nothing_and_the_run_finishes(tmp_path, small_flags, percent):
    failing = {
        "CoreWorkerService.grpc_client.PushTask": {
            "num_failures": -1,
            "req_failure_prob": percent,
            "resp_failure_prob": percent,
            "in_flight_failure_prob": 0,
        }
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "RAY_testing_rpc_failure": json.dumps(failing),
    }
    environment.pop("RAY_ADDRESS", None)
    run = tmp_path / "run"
    words = ["train", *small_flags, "--run-dir", run, "--actors.count", 2, "--replay.shards", 2]
    words += ["--replay.sampling", "prioritized", "--run.max_learner_steps", 4000]

    ended = subprocess.run(
        [sys.executable, "-m", "qfleet", *map(str, words)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["learner_steps"] == 4000
    assert (summary["role_restarts"], summary["incidents"]) == (0, [])
