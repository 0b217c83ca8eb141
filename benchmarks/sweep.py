"""Which settings solve a preset's environment soonest: arms over seeds, one process after another.

    python benchmarks/sweep.py benchmarks/sweeps/cartpole.yaml --seeds 20 --json FILE   # 20 minutes

Every arm is the file's preset with some keys replaced, trained in the local runtime (no start-up,
no video) from a compiled block until the confirmed mean over fresh greedy episodes reaches the
threshold. Updates and env steps do not depend on the machine's speed; seconds do. Arms are
interleaved over seeds, so drift hits all alike. A seed that stays unsolved counts with all its
updates.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from machine import finish, make_parser

import qfleet
from qfleet.bench.part_benchmarks import Measurement
from qfleet.common.envs import describe_environment
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.fleets.fleet import Fleet
from qfleet.fleets.local_fleet import LocalFleet
from qfleet.fleets.round_loop import run_rounds
from qfleet.replay_server.rate_limiter import LearningDebt
from qfleet.session.solve_tracker import SolveTracker
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans


class UntilSolved:
    """`RoundObserver` that evaluates on the period and stops when solved or out of budget."""

    def __init__(self, config: qfleet.Config, tracker: SolveTracker, most: int) -> None:
        self._config, self._tracker, self._most = config, tracker, most
        self._evaluated = 0
        self.learner_steps = self.env_steps = 0
        self.eval_s = 0.0

    def after_round(self, fleet: Fleet) -> bool:
        """See `RoundObserver`."""
        report = fleet.report()
        self.learner_steps, self.env_steps = report.learner.learner_steps, report.env_steps
        period = self.learner_steps // self._config.eval.period_learner_steps
        if period > self._evaluated:
            self._evaluated = period
            started = time.perf_counter()
            self._tracker.record(fleet.evaluate(self._tracker.request()))
            self.eval_s += time.perf_counter() - started
        return self._tracker.confirmed is None and self.learner_steps < self._most

    def blocks_left(self, updates_per_block: int) -> int | None:
        """See `RoundObserver`."""
        return None


def resolved(
    preset: str, overrides: dict[str, Any], seed: int
) -> tuple[qfleet.Config, EnvironmentSpec]:
    """An arm's configuration with a compiled block required, so that all are timed alike."""
    own = {"seed": seed, "runtime": "local", "learner.compile": "required"}
    config = qfleet.Config.preset(preset, {**overrides, **own})
    spec = describe_environment(config.env)
    return resolve_config(config, spec, cpus=2, gpus=0), spec


def solve(config: qfleet.Config, spec: EnvironmentSpec, most: int) -> dict[str, Any]:
    """One run of one arm."""
    fleet = LocalFleet(run_plans(config), spec, run_id="sweep", incarnation=0, device="cpu")
    tracker = SolveTracker(config, spec)
    observer = UntilSolved(config, tracker, most)
    started = time.perf_counter()
    run_rounds(run_plans(config).fleet.rounds, fleet, observer, LearningDebt())
    train_s = time.perf_counter() - started
    fleet.close()
    return {
        "solved": tracker.confirmed is not None,
        "learner_steps": observer.learner_steps,
        "env_steps": observer.env_steps,
        "train_s": train_s,
    }


def compile_package(config: qfleet.Config, spec: EnvironmentSpec) -> None:
    """Into the cache, in a process of its own as a run does it."""
    command = [sys.executable, "-m", "qfleet.learner.fast.build_block"]
    command += ["--plan-json", plan_to_json(run_plans(config).learner)]
    subprocess.run([*command, "--spec-json", spec.to_json()], check=True)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("sweep", type=Path, help="YAML file: preset, base, arms")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=101, help="disjoint from solve_time's")
    parser.add_argument("--arms", nargs="*", help="default: all of the file")
    args = parser.parse_args()
    sweep = yaml.safe_load(args.sweep.read_text())
    arms = {name: {**sweep["base"], **sweep["arms"][name]} for name in args.arms or sweep["arms"]}
    for arm, overrides in arms.items():
        compile_package(*resolved(sweep["preset"], overrides, args.first_seed))
        print(f"compiled: {arm}", file=sys.stderr, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm, overrides in arms.items():
            config, spec = resolved(sweep["preset"], overrides, seed)
            runs[arm].append(solve(config, spec, sweep["max_learner_steps"]))
        line = "  ".join(f"{arm}: {rows[-1]['learner_steps']}" for arm, rows in runs.items())
        print(f"seed {seed}  {line}", file=sys.stderr, flush=True)
    measurements = []
    for arm, rows in runs.items():
        about = {"solved": sum(row["solved"] for row in rows), "of": len(rows)}
        for quantity, unit in (("train_s", "s"), ("learner_steps", "updates")):
            values = tuple(float(row[quantity]) for row in rows)
            measurements.append(Measurement(f"{arm}, {quantity}", unit, values, about))
    args.sweep = str(args.sweep)
    finish("sweep", args, measurements)
    return 0


if __name__ == "__main__":
    sys.exit(main())
