"""A run that goes on exactly where it stopped: straight against stopped and resumed.

    python benchmarks/resume_points.py --json resume.json

One update, one inserted transition and one publish per round, so that a run can stop at any of
them: one step before, at and after a target sync, an episode's end and a wrap of the ring. Every
stop point must give the parameters of the run that was never stopped.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from machine import finish, make_parser

import qfleet
from qfleet.bench.part_benchmarks import Measurement

LEARNER_STEPS = 400
CAPACITY = 128
SYNC_PERIOD = 25
KINDS: dict[str, dict[str, object]] = {
    "uniform": {},
    "prioritized": {"replay.sampling": "prioritized"},
    "batch norm, adam": {"network.normalization": "batch", "learner.optimizer": "adam"},
}


COMMON: dict[str, object] = {
    "actors.count": 1,
    "actors.envs_per_actor": 1,
    "network.hidden_sizes": [16],
    "replay.capacity": CAPACITY,
    "replay.min_size_to_sample": 32,
    "replay.samples_per_insert": 8,
    "learner.batch_size": 8,
    "learner.updates_per_call": 1,
    "learner.publish_period_learner_steps": 1,
    "learner.target_update_period_learner_steps": SYNC_PERIOD,
    "eval.period_learner_steps": 1_000_000,
    "run.max_learner_steps": LEARNER_STEPS,
    "metrics.console": "none",
}
RUNTIMES = {"local": {"runtime": "local"}, "ray": {"runtime": "ray", "run.schedule": "lockstep"}}


def train(directory: Path, kind: str, runtime: str, **extra: object) -> qfleet.RunResult:
    """One run, or the continuation of the one in `directory`."""
    overrides = {**COMMON, **RUNTIMES[runtime], **KINDS[kind], **extra}
    resume = {"resume": str(directory)} if directory.exists() else {"run_dir": directory}
    return qfleet.train(qfleet.Config.preset("cartpole", overrides), **resume)


def stop_points(straight: Path) -> dict[int, str]:
    """Env steps to stop at, each with what happens there."""
    points: dict[int, str] = {}

    def around(env_step: int, what: str) -> None:
        for offset in (-1, 0, 1):
            points.setdefault(env_step + offset, f"{what} {offset:+d}")

    warm_up = 34  # env steps until 32 transitions of 3 steps are stored
    around(warm_up + SYNC_PERIOD, "target sync")
    around(warm_up + 3 * SYNC_PERIOD, "target sync")
    around(CAPACITY + 2, "wrap of the ring")
    lengths = [
        int(line.split(",")[1])
        for line in (straight / "monitor.csv").read_text().split()
        if line[0].isdigit() and line.count(",") == 2
    ]
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    for end in (e for e in ends if warm_up < e < LEARNER_STEPS - 2):
        around(end, "episode end")
        if len(points) >= 24:
            break
    return dict(sorted(points.items()))


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="local")
    parser.add_argument("--points", type=int, default=None, help="only the first N stop points")
    args = parser.parse_args()
    found, all_equal = [], True
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            straight = Path(folder) / kind / "straight"
            wanted = train(straight, kind, args.runtime).params_sha256
            points = list(stop_points(straight).items())[: args.points]
            equal = []
            for env_step, what in points:
                directory = Path(folder) / kind / str(env_step)
                stopped = train(directory, kind, args.runtime, **{"run.max_env_steps": env_step})
                equal.append(train(directory, kind, args.runtime).params_sha256 == wanted)
                print(
                    f"{kind:17s} env step {env_step:4d} learner step {stopped.learner_steps:4d} "
                    f"{what:20s} {'equal' if equal[-1] else 'DIFFERS'}",
                    flush=True,
                )
            all_equal = all_equal and all(equal)
            about = {"of": len(points)}
            name = f"resumed equals straight, {kind}"
            found.append(Measurement(name, "stop points", (sum(equal),), about))
    finish("resume_points", args, found)
    return 0 if all_equal else 1


if __name__ == "__main__":
    sys.exit(main())
