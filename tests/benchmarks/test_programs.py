"""Every measuring program still runs: the roles it starts change without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "actor_speed": "--sub-envs 16 --repeats 1 --repeat-s 0.05",
    "call_cost": "--networks 128-64 --actors 1 --rounds 5 --repeats 1",
    "checkpoint_cost": "--rows 20000 --repeats 2 --before-s 1 --window-s 2",
    "compile_choice": "--runtimes local --updates 1000 --repeats 1",
    "family_cost": "--rows 2000 --repeats 1",
    "frames_over_ray": "--repeats 1 --seconds 1 --capacity 2000",
    "learner_over_ray": "--repeats 1 --seconds 1 --modes off --playing free",
    "learner_speed": "--repeats 1 --repeat-s 0.05 --workloads cartpole",
    "lockstep_grid": "--cells 1",
    "memory": "--actors 1 --seconds 4",
    "publishing_cost": "--networks 128-64 --actors 1 --seconds 0.5 --repeats 1",
    "replay_in_process": "--rows 20000 --frame-rows 2000 --repeats 1 --repeat-s 0.05",
    "replay_saturation": "--shards 1 --producers 1 --repeats 1 --seconds 0.5",
    "resume_points": "--points 1",
    "runtime_overhead": "--seeds 1 --updates 500",
    "snapshot_latency": "--networks 128-64 --seconds 3",
}
WITHOUT = {
    "faults": "tests/integration injects the same ones",
    "scaling": "tests/benchmarks/test_scaling.py",
    "report": "tests/benchmarks/test_benchmark_twins.py",
    "solve_time": "each contestant has an environment of its own",
    "tabular_q_cartpole": "uses nothing of this package",
}
"""Programs that are not run here, and why."""


def programs() -> set[str]:
    paths = (ROOT / "benchmarks").glob("*.py")
    return {path.stem for path in paths if "__main__" in path.read_text()}


def test_every_program_is_tried_or_said_not_to_be():
    assert programs() == set(SMALL) | set(WITHOUT)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", sorted(SMALL))
def test_program_runs_with_small_arguments(name):
    words = [f"benchmarks/{name}.py", *SMALL[name].split()]

    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )

    assert done.returncode == 0, done.stderr
