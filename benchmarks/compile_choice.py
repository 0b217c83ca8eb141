"""What `learner.compile auto` costs a run that starts with an empty cache, against `off`.

    python benchmarks/compile_choice.py [--json FILE]

Every run is a new process with the default preset and a budget of updates instead of a score, timed
from outside, from its start to its exit; `auto` begins each time with an empty package cache. The
two take turns in an order that is turned round each time. The ratio of each pair counts: `auto`
must not be more than 5 % slower, whether it compiles in that run or finds that it would not pay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement

TIMEOUT_S = 600.0
NEVER = "1000000000"


def run(runtime: str, compile_mode: str, updates: int, seed: int) -> tuple[float, dict[str, Any]]:
    """(seconds from start to exit, summary) of one run with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        directory = Path(folder) / "run"
        flags = {
            "--runtime": runtime,
            "--seed": str(seed),
            "--learner.compile": compile_mode,
            "--run.max_learner_steps": str(updates),
            "--eval.period_learner_steps": NEVER,
            "--run-dir": str(directory),
        }
        words = [word for pair in flags.items() for word in pair]
        started_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "qfleet", "train", "cartpole", *words],
            env={**os.environ, "QFLEET_CACHE": str(Path(folder) / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
        )
        seconds = time.perf_counter() - started_s
        return seconds, json.loads((directory / "summary.json").read_text())


def measure(runtime: str, updates: int, repeats: int) -> list[Measurement]:
    times: dict[str, list[float]] = {"off": [], "auto": []}
    paths: list[str] = []
    for repeat in range(repeats):
        modes = ("off", "auto") if repeat % 2 == 0 else ("auto", "off")
        for mode in modes:
            seconds, summary = run(runtime, mode, updates, 1 + repeat)
            if summary["learner_steps"] != updates:
                raise SystemExit(f"{summary['learner_steps']} updates were made, not {updates}")
            times[mode].append(seconds)
            if mode == "auto":
                paths.append(summary["learner_path"])
    ratios = [b / a for a, b in zip(times["off"], times["auto"], strict=True)]
    what = f"{runtime}, {updates:,} updates"
    about = {"auto ended": ", ".join(sorted(set(paths)))}
    return [
        Measurement(f"{what}: compile off", "s", tuple(times["off"])),
        Measurement(f"{what}: compile auto, empty cache", "s", tuple(times["auto"]), about),
        Measurement(f"{what}: auto / off", "", tuple(ratios)),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runtimes", nargs="+", default=["ray", "local"])
    parser.add_argument("--updates", type=int, nargs="+", default=[5_000, 60_000, 200_000])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    arguments = parser.parse_args()
    found = [
        one
        for updates in arguments.updates
        for runtime in arguments.runtimes
        for one in measure(runtime, updates, arguments.repeats)
    ]
    finish("compile_choice", arguments, found)


if __name__ == "__main__":
    main()
