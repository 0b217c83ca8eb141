"""The program of the learner's figures, tried without a GPU and where Ray is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path):
    """Run the program where importing Ray fails, as where it is not installed."""
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray here')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path), str(ROOT / "src")]
        return subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "learner_speed.py"), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_names_the_remedy(run) -> None:
    done = run("--device", "cuda")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "sees no usable GPU" in done.stderr
    assert "--device cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_courses_network_is_measured_on_its_own_frames(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from learner_workloads import workload

    load = workload("course-frames-32")

    plan = load.plan
    assert (plan.network.kind, plan.network.normalization) == ("convnet", "batch")
    assert (plan.batch_size, plan.optimizer, plan.loss) == (32, "sgd", "huber")
    assert load.environment.observation_shape == (8, 84, 84)
    assert load.sample().columns["observation"].dtype == "uint8"


def test_frames_on_a_cpu_are_eager_and_recorded(run, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    limits = ["--repeats", "3", "--repeat-s", "0", "--twin-updates", "8"]
    done = run("--workloads", "frames-32", *limits, "--json", str(record))
    assert done.returncode == 0, done.stderr
    report = json.loads(record.read_text())
    figures = {row["name"]: row for row in report["results"]}
    timed = {f"frames-32, {part}, eager" for part in ("block", "update_block")}
    rounded = {f"{name}, bfloat16" for name in timed}
    assert set(figures) == timed | rounded | {f"{name} over eager" for name in rounded}
    block = figures["frames-32, block, eager, bfloat16"]
    assert (block["unit"], block["count"], block["detail"]["batch_size"]) == ("updates/s", 3, 32)
    assert block["detail"]["eager again from eager after 8"] == "0.0e+00"
    assert float(block["detail"]["eager, bfloat16 from eager after 8"]) > 0
