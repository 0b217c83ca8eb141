"""How the `cartpole` preset's values were chosen: time to solved, over seeds, one change at a time.

    python benchmarks/sweep_cartpole.py --seeds 20 --json benchmarks/results/sweep_cartpole.json

Every arm is the preset with some keys replaced, trained in the local runtime (no start-up, no
video) from a compiled block until the confirmed mean over 100 greedy episodes reaches 475. Updates
and env steps do not depend on the machine's speed; seconds do. Arms are interleaved over seeds, so
drift hits all alike. A seed that stays unsolved counts with all its updates.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

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

BEGINNING: dict[str, Any] = {
    "network.hidden_sizes": (128, 64),
    "actors.envs_per_actor": 16,
    "actors.n_step": 3,
    "learner.batch_size": 64,
    "learner.learning_rate": 2e-2,
    "learner.target_update_period_learner_steps": 200,
}
"""The preset before the first round, where it was changed or may be."""

CHANGES: dict[str, dict[str, Any]] = {
    "beginning": {},
    "learning rate 0.01": {"learner.learning_rate": 1e-2},
    "learning rate 0.03": {"learner.learning_rate": 3e-2},
    "learning rate 0.04": {"learner.learning_rate": 4e-2},
    "adam 0.001": {"learner.optimizer": "adam", "learner.learning_rate": 1e-3},
    "adam 0.002": {"learner.optimizer": "adam", "learner.learning_rate": 2e-3},
    "no momentum, rate 0.1": {"learner.momentum": 0.0, "learner.learning_rate": 0.1},
    "target sync every 100": {"learner.target_update_period_learner_steps": 100},
    "target sync every 300": {
        "learner.target_update_period_learner_steps": 300,
        "eval.period_learner_steps": 600,
    },
    "target sync every 400": {
        "learner.target_update_period_learner_steps": 400,
        "eval.period_learner_steps": 400,
    },
    "batch 32": {"learner.batch_size": 32},
    "batch 128": {"learner.batch_size": 128},
    "8 samples per insert": {"replay.samples_per_insert": 8},
    "32 samples per insert": {"replay.samples_per_insert": 32},
    "n-step 1": {"actors.n_step": 1},
    "n-step 5": {"actors.n_step": 5},
    "n-step 8": {"actors.n_step": 8},
    "discount 0.98": {"actors.discount": 0.98},
    "8 environments": {"actors.envs_per_actor": 8},
    "32 environments": {"actors.envs_per_actor": 32},
    "least epsilon 0.2^8": {"actors.epsilon_base": 0.2},
    "capacity 10,000": {"replay.capacity": 10_000},
    "prioritized": {"replay.sampling": "prioritized"},
    "publish every 100": {"learner.publish_period_learner_steps": 100},
    "evaluate every 250": {"eval.period_learner_steps": 250},
    "hidden 64, 64": {"network.hidden_sizes": (64, 64)},
    "hidden 128, 128": {"network.hidden_sizes": (128, 128)},
    "hidden 256, 128": {"network.hidden_sizes": (256, 128)},
    "layer norm": {"network.normalization": "layer"},
    "mse": {"learner.loss": "mse"},
    "gradient norm 1": {"learner.max_grad_norm": 1},
}
SINGLE = {name: {**BEGINNING, **change} for name, change in CHANGES.items()}
"""The first round: the preset of that time, and one change each."""

BASE: dict[str, Any] = {**BEGINNING, "actors.n_step": 5, "network.hidden_sizes": (64, 64)}
COMBINED: dict[str, dict[str, Any]] = {
    "A": BASE,
    "A, n-step 8": {**BASE, "actors.n_step": 8},
    "A, batch 128": {**BASE, "learner.batch_size": 128},
    "A, target sync every 100": {**BASE, "learner.target_update_period_learner_steps": 100},
    "A, least epsilon 0.2^8": {**BASE, "actors.epsilon_base": 0.2},
    "A, 32 environments": {**BASE, "actors.envs_per_actor": 32},
    "A, 32 environments, least epsilon 0.2^8": {
        **BASE,
        "actors.envs_per_actor": 32,
        "actors.epsilon_base": 0.2,
    },
    "A, evaluate every 250": {**BASE, "eval.period_learner_steps": 250},
    "A, learning rate 0.03": {**BASE, "learner.learning_rate": 3e-2},
    "A, hidden 128, 64": {**BASE, "network.hidden_sizes": (128, 64)},
}
"""The second round: A joins two changes that did well, the others add one more to it."""

_B = {**BASE, "learner.target_update_period_learner_steps": 100, "learner.learning_rate": 3e-2}
JOINED: dict[str, dict[str, Any]] = {
    "B": _B,
    "B, n-step 8": {**_B, "actors.n_step": 8},
    "B, batch 128": {**_B, "learner.batch_size": 128},
    "B, evaluate every 250": {**_B, "eval.period_learner_steps": 250},
    "B, 12 samples per insert": {**_B, "replay.samples_per_insert": 12},
    "B, hidden 128, 64": {**_B, "network.hidden_sizes": (128, 64)},
}
"""The third round: B is A with its two best additions."""

_C = {**_B, "eval.period_learner_steps": 250}
LAST: dict[str, dict[str, Any]] = {
    "C": _C,
    "C, learning rate 0.04": {**_C, "learner.learning_rate": 4e-2},
    "C, learning rate 0.02": {**_C, "learner.learning_rate": 2e-2},
    "C, target sync every 50": {**_C, "learner.target_update_period_learner_steps": 50},
    "C, n-step 4": {**_C, "actors.n_step": 4},
    "C, n-step 7": {**_C, "actors.n_step": 7},
    "C, 24 samples per insert": {**_C, "replay.samples_per_insert": 24},
    "C, start at 500": {**_C, "replay.min_size_to_sample": 500},
    "C, 8 environments": {**_C, "actors.envs_per_actor": 8},
    "C, 32 environments": {**_C, "actors.envs_per_actor": 32},
    "C, hidden 64, 32": {**_C, "network.hidden_sizes": (64, 32)},
    "C, hidden 96, 64": {**_C, "network.hidden_sizes": (96, 64)},
}
"""The last round: C, the best of the third, and its neighbours."""

ARMS = {**SINGLE, **COMBINED, **JOINED, **LAST}


class UntilSolved:
    """`RoundObserver` that evaluates on the period and stops when solved or out of budget."""

    def __init__(self, config: qfleet.Config, tracker: SolveTracker) -> None:
        self._config, self._tracker = config, tracker
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
        budget = self._config.run.max_learner_steps or 60_000
        return self._tracker.confirmed is None and self.learner_steps < budget

    def blocks_left(self, updates_per_block: int) -> int | None:
        """See `RoundObserver`."""
        return None


def resolved(overrides: dict[str, Any], seed: int) -> tuple[qfleet.Config, EnvironmentSpec]:
    """An arm's configuration with a compiled block required, so that all are timed alike."""
    own = {"seed": seed, "runtime": "local", "learner.compile": "required"}
    config = qfleet.Config.preset("cartpole", {**overrides, **own})
    spec = describe_environment(config.env)
    return resolve_config(config, spec, cpus=2, gpus=0), spec


def solve(overrides: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run of one arm."""
    config, spec = resolved(overrides, seed)
    fleet = LocalFleet(run_plans(config), spec, run_id="sweep", incarnation=0, device="cpu")
    tracker = SolveTracker(config, spec)
    observer = UntilSolved(config, tracker)
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
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=101, help="disjoint from solve_time's")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args()
    for arm in args.arms:
        compile_package(*resolved(ARMS[arm], args.first_seed))
        print(f"compiled: {arm}", file=sys.stderr, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm in args.arms:
            runs[arm].append(solve(ARMS[arm], seed))
        line = "  ".join(f"{arm}: {rows[-1]['learner_steps']}" for arm, rows in runs.items())
        print(f"seed {seed}  {line}", file=sys.stderr, flush=True)
    measurements = []
    for arm, rows in runs.items():
        solved = sum(row["solved"] for row in rows)
        about = {"solved": solved, "of": len(rows)}
        for quantity, unit in (("train_s", "s"), ("learner_steps", "updates")):
            values = tuple(float(row[quantity]) for row in rows)
            measurements.append(Measurement(f"{arm}, {quantity}", unit, values, about))
    finish("sweep_cartpole", args, measurements)
    return 0


if __name__ == "__main__":
    sys.exit(main())
