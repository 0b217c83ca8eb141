"""The same training in this process, in lockstep over Ray, and free running over Ray.

    python benchmarks/runtime_overhead.py [--json FILE]

The default preset with one actor and a budget of updates instead of a score; evaluation and
checkpoints are left out. Each run is a new process; only the training loop is timed, when all
roles have answered, up to the last update, at a small and a larger budget: what the first calls
between new processes cost weighs less in the second. The runtimes take turns, in an order that is
turned round each time. Equal work is checked: all make the same number of updates, and local and
lockstep end with the same parameters, bit for bit, and the same number of env steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.common.types import EvaluationReport, EvaluationRequest
from qfleet.fleets.fleet import Fleet, FleetReport
from qfleet.settings.plans import run_plans

RUNTIMES = ("local", "lockstep", "async")
CHILD_TIMEOUT_S = 300.0
NEVER = 1_000_000_000


def configuration(runtime: str, seed: int, updates: int) -> tuple[Any, Any]:
    overrides: dict[str, object] = {
        "runtime": "local" if runtime == "local" else "ray",
        "run.schedule": "async" if runtime == "async" else "lockstep",
        "seed": seed,
        "actors.count": 1,
        "run.max_learner_steps": updates,
        "eval.period_learner_steps": NEVER,
    }
    return resolved_preset("cartpole", overrides)


class BudgetObserver:
    """`RoundObserver` that ends at the budget of updates and writes nothing."""

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self.report: FleetReport | None = None

    def after_round(self, fleet: Fleet) -> bool:
        """See `RoundObserver`."""
        self.report = fleet.report()
        return self.report.learner.learner_steps < self._updates

    def blocks_left(self, updates_per_block: int) -> int | None:
        """See `RoundObserver`."""
        done = 0 if self.report is None else self.report.learner.learner_steps
        return max(0, (self._updates - done) // updates_per_block)


class QuietSession:
    """`AsyncSession` that keeps the last counters and the time of the last question."""

    def __init__(self) -> None:
        self.report: FleetReport | None = None
        self.asked_at_s = 0.0

    def stop_reason(self) -> str | None:
        """Never; the learner's own budget ends the run, and this is asked right after that."""
        self.asked_at_s = time.perf_counter()
        return None

    def observe(self, report: FleetReport) -> None:
        """See `AsyncSession`."""
        self.report = report

    def evaluation_request(self) -> EvaluationRequest:
        """See `AsyncSession`; the period is never reached."""
        raise SystemExit("no evaluation was to happen")

    def record_evaluation(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """See `AsyncSession`."""

    def checkpoint_due(self) -> bool:
        """See `AsyncSession`."""
        return False

    def save_checkpoint(self, files: dict[str, bytes], params: bytes) -> None:
        """See `AsyncSession`."""

    def incident(self, text: str) -> None:
        """Anything that a user should see makes the measurement worthless."""
        raise SystemExit(f"incident: {text}")


def run_lockstep(fleet: Fleet, config: Any) -> dict[str, Any]:
    """Rounds until the budget; the fleet is ready."""
    from qfleet.fleets.round_loop import run_rounds
    from qfleet.replay_server.rate_limiter import LearningDebt

    observer = BudgetObserver(config.run.max_learner_steps)
    started_s = time.perf_counter()
    run_rounds(run_plans(config).fleet.rounds, fleet, observer, LearningDebt())
    train_s = time.perf_counter() - started_s
    return outcome(train_s, observer.report, fleet.fingerprint())


def run_async(config: Any, spec: Any) -> dict[str, Any]:
    """The asynchronous loop, from the moment when all roles have answered."""
    from qfleet.cluster.roles import START_TIMEOUT_S, answer
    from qfleet.fleets.async_loop import AsyncLoop

    loop = AsyncLoop(run_plans(config), spec, run_id="bench", incarnation=0, device="cpu")
    try:
        for handle in [*loop.roles.actors.values()]:
            answer(handle.ping.remote(), "benchmark", "an actor to start", START_TIMEOUT_S)
        session = QuietSession()
        started_s = time.perf_counter()
        loop.run(session)
        return outcome(session.asked_at_s - started_s, session.report, loop.fingerprint())
    finally:
        loop.close()


def outcome(train_s: float, report: FleetReport | None, fingerprint: str) -> dict[str, Any]:
    assert report is not None, "the loop has observed at least once"
    return {
        "train_s": train_s,
        "learner_steps": report.learner.learner_steps,
        "env_steps": report.env_steps,
        "params_sha256": fingerprint,
    }


def child(runtime: str, seed: int, updates: int) -> dict[str, Any]:
    """One run in this process."""
    config, spec = configuration(runtime, seed, updates)
    about = {"run_id": "bench", "incarnation": 0, "device": "cpu"}
    if runtime == "local":
        from qfleet.fleets.local_fleet import LocalFleet

        local = LocalFleet(run_plans(config), spec, **about)
        try:
            return run_lockstep(local, config)
        finally:
            local.close()
    from qfleet.cluster.ray_cluster import connect, disconnect
    from qfleet.fleets.ray_fleet import RayFleet

    cluster = connect(run_plans(config).cluster)
    try:
        if runtime == "async":
            return run_async(config, spec)
        fleet = RayFleet(run_plans(config), spec, **about)
        try:
            return run_lockstep(fleet, config)
        finally:
            fleet.close()
    finally:
        disconnect(cluster)


def run_child(runtime: str, seed: int, updates: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--child", runtime]
    command += ["--seed", str(seed), "--updates", str(updates)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
    if answer.returncode:
        raise SystemExit(f"{runtime}, seed {seed} failed:\n{answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def check_equal_work(runs: dict[str, list[dict[str, Any]]], updates: int) -> None:
    """Every run made all updates; local and lockstep did the very same thing."""
    for runtime, rows in runs.items():
        if any(row["learner_steps"] != updates for row in rows):
            raise SystemExit(f"{runtime} did not make exactly {updates} updates: {rows}")
    keys = ("env_steps", "params_sha256")
    for local, lockstep in zip(runs["local"], runs["lockstep"], strict=True):
        if any(local[key] != lockstep[key] for key in keys):
            raise SystemExit(f"local and lockstep differ: {local} and {lockstep}")


def summarize(runs: dict[str, list[dict[str, Any]]], updates: int) -> list[Measurement]:
    """Training times, and each run's time over the local run's of the same seed."""
    of = f"{updates:,} updates"
    found = []
    for runtime, rows in runs.items():
        about = {"env steps": "/".join(str(row["env_steps"]) for row in rows)}
        times = tuple(row["train_s"] for row in rows)
        found.append(Measurement(f"{of}, {runtime}, training", "s", times, about))
    for runtime in RUNTIMES[1:]:
        pairs = zip(runs[runtime], runs["local"], strict=True)
        ratios = tuple(row["train_s"] / local["train_s"] for row, local in pairs)
        found.append(Measurement(f"{of}, {runtime} over local", "×", ratios))
    return found


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1..N for each runtime")
    parser.add_argument(
        "--updates", type=int, nargs="+", default=[3_000, 12_000], help="budgets of the runs"
    )
    parser.add_argument("--child", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.seed, arguments.updates[0])))
        return
    found: list[Measurement] = []
    for updates in arguments.updates:
        runs: dict[str, list[dict[str, Any]]] = {runtime: [] for runtime in RUNTIMES}
        for seed in range(1, arguments.seeds + 1):
            for runtime in RUNTIMES if seed % 2 else reversed(RUNTIMES):
                runs[runtime].append(run_child(runtime, seed, updates))
        check_equal_work(runs, updates)
        found += summarize(runs, updates)
    del arguments.child, arguments.seed
    finish("runtime_overhead", arguments, found, ["local = lockstep, bit for bit: yes"])


if __name__ == "__main__":
    main()
