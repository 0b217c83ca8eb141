"""What `learner.compile auto` costs a run that starts with an empty cache, against `off`.

    python benchmarks/compile_choice.py [--json FILE]

Every run is a new process with the default preset and a budget of updates instead of a score, timed
from outside, from its start to its exit; `auto` begins each time with an empty package cache. The
two take turns in an order that is turned round each time. The ratio of each pair counts: `auto`
must not be more than 5 % slower, whether it compiles in that run or finds that it would not pay.
"""

from __future__ import annotations

from machine import finish, make_parser
from whole_runs import run

from qfleet.bench.bench_record import Measurement


def measure(runtime: str, updates: int, repeats: int) -> list[Measurement]:
    times: dict[str, list[float]] = {"off": [], "auto": []}
    paths: set[str] = set()
    for repeat in range(repeats):
        for mode in ("off", "auto") if repeat % 2 == 0 else ("auto", "off"):
            flags = {"runtime": runtime, "seed": 1 + repeat, "learner.compile": mode}
            seconds, summary = run({**flags, "run.max_learner_steps": updates}, empty_cache=True)
            times[mode].append(seconds)
            if mode == "auto":
                paths.add(summary["learner_path"])
    ratios = [b / a for a, b in zip(times["off"], times["auto"], strict=True)]
    what = f"{runtime}, {updates:,} updates"
    about = {"auto ended": ", ".join(sorted(paths))}
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
