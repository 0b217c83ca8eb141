"""The same training in one process, in lockstep over Ray, and free running over Ray.

    python benchmarks/runtime_overhead.py [--json FILE]

`qfleet train` on the default preset with one actor and a budget of updates instead of a score,
without evaluations. Each run is a new process; its own summary tells the training time, from the
moment when all roles are there to the last update, at a small and a larger budget: what the first
calls between new processes cost weighs less in the second. The runtimes take turns, in an order
that is turned round each time. Equal work is checked: all make the same number of updates, and
local and lockstep end with the same parameters, bit for bit, and the same number of env steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement

RUNTIMES = {
    "local": ["--runtime", "local"],
    "lockstep": ["--runtime", "ray", "--run.schedule", "lockstep"],
    "async": ["--runtime", "ray", "--run.schedule", "async"],
}
RUN_TIMEOUT_S = 300.0
NEVER = "1_000_000_000"


def run(runtime: str, seed: int, updates: int) -> dict[str, Any]:
    """One run's summary."""
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        command = [sys.executable, "-m", "qfleet", "train", "cartpole", *RUNTIMES[runtime]]
        command += ["--seed", str(seed), "--run.max_learner_steps", str(updates)]
        command += ["--actors.count", "1", "--eval.period_learner_steps", NEVER]
        command += ["--run-dir", f"{folder}/run", "--run.checkpoint_period_s", NEVER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        if done.returncode:
            raise SystemExit(f"{runtime}, seed {seed} failed:\n{done.stderr[-2000:]}")
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    if summary["incidents"]:
        raise SystemExit(f"{runtime}, seed {seed}: {summary['incidents']}")
    return summary


def check_equal_work(runs: dict[str, list[dict[str, Any]]], updates: int) -> None:
    """Every run made all updates; local and lockstep did the very same thing."""
    for runtime, rows in runs.items():
        if any(row["learner_steps"] != updates for row in rows):
            steps = [row["learner_steps"] for row in rows]
            raise SystemExit(f"{runtime} did not make exactly {updates} updates: {steps}")
    for local, lockstep in zip(runs["local"], runs["lockstep"], strict=True):
        for key in ("env_steps", "params_sha256"):
            if local[key] != lockstep[key]:
                raise SystemExit(f"{key} of local and lockstep: {local[key]}, {lockstep[key]}")


def summarize(runs: dict[str, list[dict[str, Any]]], updates: int) -> list[Measurement]:
    """Training times, and each run's time over the local run's of the same seed."""
    of = f"{updates:,} updates"
    found = []
    for runtime, rows in runs.items():
        about = {"env steps": "/".join(str(row["env_steps"]) for row in rows)}
        times = tuple(row["train_s"] for row in rows)
        found.append(Measurement(f"{of}, {runtime}, training", "s", times, about))
    for runtime in ("lockstep", "async"):
        pairs = zip(runs[runtime], runs["local"], strict=True)
        ratios = tuple(row["train_s"] / local["train_s"] for row, local in pairs)
        found.append(Measurement(f"{of}, {runtime} over local", "×", ratios))
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1..N for each runtime")
    parser.add_argument(
        "--updates", type=int, nargs="+", default=[3_000, 12_000], help="budgets of the runs"
    )
    arguments = parser.parse_args()
    found: list[Measurement] = []
    for updates in arguments.updates:
        runs: dict[str, list[dict[str, Any]]] = {runtime: [] for runtime in RUNTIMES}
        for seed in range(1, arguments.seeds + 1):
            for runtime in list(RUNTIMES)[:: 1 if seed % 2 else -1]:
                runs[runtime].append(run(runtime, seed, updates))
        check_equal_work(runs, updates)
        found += summarize(runs, updates)
    finish("runtime_overhead", arguments, found, ["local = lockstep, bit for bit: yes"])


if __name__ == "__main__":
    main()
