"""The program of the GPU figures, tried as a user without a GPU tries it, and without Ray."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("tutorial-state", "cartpole-learner", "frames-32", "acting", "solve")


@pytest.fixture
def run(tmp_path: Path):
    """Run the program where importing Ray fails, as where it is not installed."""
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray here')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path), str(ROOT / "src")]
        return subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "gpu_figures.py"), *arguments],
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
    done = run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "sees no usable GPU" in done.stderr
    assert "--device cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_on_a_cpu_every_part_is_tried_and_recorded(run, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    limits = ["--part-s", "0.02", "--solve-s", "1", "--twin-updates", "4"]
    done = run(
        "--device", "cpu", *limits, "--updates-per-block", "2", "--parts", ",".join(PARTS),
        "--json", str(record),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(record.read_text())
    figures = {row["name"]: row for row in report["results"]}
    for workload in ("tutorial-state", "frames-32"):
        for what in ("block", "block with copy"):
            for form in ("eager", "static"):
                assert figures[f"{workload}, {what}, {form}"]["unit"] == "updates/s"
    # Two observations and five numbers of 4 bytes, an action of 8; frames are bytes.
    for workload, observation_bytes in (("tutorial-state", 16), ("frames-32", 28_224)):
        made_ready = figures[f"{workload}, static made ready"]["detail"]
        transition_bytes = 2 * observation_bytes + 3 * 4 + 8
        assert made_ready["bytes_to_device_per_update"] == 32 * transition_bytes
        (twin,) = (note for note in report["notes"] if note.startswith(f"{workload}: "))
        apart = re.search(r"the parameters of static are (\S+) from eager", twin)
        assert apart is not None
        assert float(apart[1]) < 1e-3
    assert figures["acting on frames, 64 environments, cpu"]["unit"] == "steps/s"
    assert figures["cartpole, update_block, eager"]["count"] >= 3
    (solve,) = (row for name, row in figures.items() if name.startswith("cartpole, command to"))
    assert solve["detail"]["device"] == "cpu"
    assert solve["detail"]["solved"] == solve["name"].endswith(", solved")
    assert report["settings"]["accelerator"] == {"name": "none, tried on a CPU"}
    assert "cartpole, training alone" in done.stdout


def test_parts_that_find_no_time_are_named(run, tmp_path: Path) -> None:
    done = run("--device", "cpu", "--total-s", "0", "--parts", "acting,solve")
    assert done.returncode == 0, done.stderr
    for part in ("acting", "solve"):
        assert f"{part}: not measured, the time was used up (--total-s)" in done.stdout


def test_unknown_part_lists_those_that_exist(run) -> None:
    done = run("--device", "cpu", "--parts", "pong")
    assert done.returncode == 2
    assert "--parts pong: there are tutorial-state, tutorial-state-learner, cartpole" in done.stderr
