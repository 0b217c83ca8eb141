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

from typing import Any

from machine import finish, make_parser
from whole_runs import NEVER, run

from qfleet.bench.bench_record import Measurement

RUNTIMES = {
    "local": {"runtime": "local"},
    "lockstep": {"runtime": "ray", "run.schedule": "lockstep"},
    "async": {"runtime": "ray", "run.schedule": "async"},
}
Runs = dict[str, list[dict[str, Any]]]


def runs_of(updates: int, seeds: int) -> Runs:
    """Summaries by runtime."""
    runs: Runs = {runtime: [] for runtime in RUNTIMES}
    for seed in range(1, seeds + 1):
        for runtime in list(RUNTIMES)[:: 1 if seed % 2 else -1]:
            flags = {"seed": seed, "run.max_learner_steps": updates, "actors.count": 1}
            flags |= {"run.checkpoint_period_s": NEVER, **RUNTIMES[runtime]}
            runs[runtime].append(run(flags)[1])
    for local, lockstep in zip(runs["local"], runs["lockstep"], strict=True):
        for key in ("env_steps", "params_sha256"):
            if local[key] != lockstep[key]:
                raise SystemExit(f"{key} of local and lockstep: {local[key]}, {lockstep[key]}")
    return runs


def summarize(runs: Runs, updates: int) -> list[Measurement]:
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
        found += summarize(runs_of(updates, arguments.seeds), updates)
    finish("runtime_overhead", arguments, found, ["local = lockstep, bit for bit: yes"])


if __name__ == "__main__":
    main()
