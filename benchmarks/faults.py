"""Injects faults into real runs: how long each takes to be answered, and what a run loses by it.

    python benchmarks/faults.py [NAME ...]     (`make faults`: all of them, fifteen minutes)
    python benchmarks/faults.py page           (only writes the page anew)

Every fault is a run of its own, started by the command line as a user would start it. What each
part found is kept in benchmarks/results/faults; docs/reliability.md is written from those files by
reliability_page.py. The exit status is 1 when a bound was missed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psutil
from fault_losses import LOSSES
from fault_runs import ANSWER_TIMEOUT_S, Run
from reliability_page import PAGE, RESULTS, misses, page, read_results

Answers = Iterator[tuple[str, float, float, str]]
"""Runtime, bound in seconds, seconds taken, and the answer in words."""


def stopped_role() -> Answers:
    """A role is stopped while a checkpoint is due."""
    for role, text in (
        ("LearnerShell", "all roles start again"),
        ("ReplayServerShell", "all roles start again"),
        ("EvaluatorShell", "evaluator.*a new one takes its place"),
    ):
        with Run() as run:
            run.learns()
            run.role(role).suspend()
            yield f"ray, {role.removesuffix('Shell')}", 60.0, run.says(text), "replaced"


def hung_environment() -> Answers:
    """An environment hangs in `step` while others play."""
    for schedule, text in (("async", r"actor \d died \(its env"), ("lockstep", "start again")):
        changes = {"env__factory": "fault_env:make", "run__schedule": schedule}
        with Run(**changes) as run:
            run.learns()
            (run.folder / "hang").write_text(str(run.role("ActorShell").pid))
            yield f"ray, {schedule}", 60.0, run.says(text), "replaced"


def sigterm_beside_a_hung_role() -> Answers:
    """SIGTERM while the learner is stopped or an environment hangs."""
    with Run() as run:
        run.learns()
        run.role("LearnerShell").suspend()
        time.sleep(3.0)
        run.process.terminate()
        yield "ray", 15.0, *run.exits(143)
    with Run(env__factory="fault_env:make", runtime="local") as run:
        run.learns()
        (run.folder / "hang").write_text("any")
        time.sleep(3.0)
        run.process.terminate()
        yield "local", 15.0, *run.exits(143)


def group_signals() -> Answers:
    """A signal to the whole process group."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for runtime in ("ray", "local"):
            with Run(runtime=runtime) as run:
                run.learns()
                os.killpg(run.process.pid, number)
                yield f"{runtime}, {number.name}", 15.0, *run.exits(128 + number)


def sigterm_to_a_role() -> Answers:
    """SIGTERM to a single actor."""
    with Run() as run:
        run.learns()
        run.role("ActorShell").terminate()
        yield "ray", 15.0, run.says("plays again"), "replaced"


def lost_cluster() -> Answers:
    """Raylet or GCS is killed."""
    for service in ("raylet", "gcs_server"):
        with Run() as run:
            run.learns()
            run.role(service).kill()
            yield f"ray, {service}, training", 60.0, *run.exits(5)
        with Run() as run:
            run.role("raylet")
            time.sleep(2.0)
            run.role(service).kill()
            yield f"ray, {service}, before training", 60.0, *run.exits(5, 2)


def silent_address() -> Answers:
    """`ray.address` names a port that is dead, or that answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with Run("--ray.address", address) as run:
            yield "ray, dead", 60.0, *run.exits(2)
        listening.listen()
        with Run("--ray.address", address) as run:
            yield "ray, silent", 60.0, *run.exits(2)


def same_death_again() -> Answers:
    """Every observation is NaN from some step on."""
    for runtime in ("ray", "local"):
        with Run(env__factory="fault_env:make", runtime=runtime) as run:
            run.learns()
            (run.folder / "nan").write_text("any")
            yield runtime, 60.0, *run.exits(5)


def killed_driver(
    moments: Sequence[str] = ("raylet", "LearnerShell", "training"),
) -> Answers:
    """Kill -9 of the driver: until no process and no file of Ray's is left."""
    for moment in moments:
        with Run() as run:
            run.learns() if moment == "training" else run.role(moment)
            children = psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            began_s = time.monotonic()
            alive: list[psutil.Process] = children
            while time.monotonic() - began_s < ANSWER_TIMEOUT_S and (
                alive or any((run.folder / "ray").glob("session_2*"))
            ):
                _, alive = psutil.wait_procs(alive, timeout=0.1)
            yield f"ray, {moment}", 15.0, time.monotonic() - began_s, "nothing left"


WAITS = (
    stopped_role,
    hung_environment,
    sigterm_beside_a_hung_role,
    group_signals,
    sigterm_to_a_role,
    lost_cluster,
    silent_address,
    same_death_again,
    killed_driver,
)


AT_ONCE = 3
"""Most of these runs wait most of the time."""
Part = Callable[[], list[dict[str, Any]]]


def answered(fault: Callable[[], Answers]) -> list[dict[str, Any]]:
    """One row per runtime."""
    keys = ("name", "runtime", "within_s", "seconds", "answer")
    name = str(fault.__doc__).rstrip(".")
    rows = [dict(zip(keys, (name, *answer), strict=True)) for answer in fault()]
    return [{**row, "seconds": round(row["seconds"], 2)} for row in rows]


def main(names: Sequence[str]) -> int:
    """Inject the named faults, or all; 1 when a bound was missed."""
    beside: dict[str, Part] = {fault.__name__: partial(answered, fault) for fault in WAITS}
    alone: dict[str, Part] = {part.__name__: part for part in LOSSES}
    if unknown := set(names) - set(beside) - set(alone) - {"page"}:
        sys.exit(f"no fault {', '.join(unknown)}: there are {', '.join([*beside, *alone])}")
    RESULTS.mkdir(exist_ok=True)
    n_missed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        chosen = {name: part for name, part in beside.items() if name in names or not names}
        for name, found in {name: pool.submit(part) for name, part in chosen.items()}.items():
            n_missed += keep(name, found.result())
    for name, part in alone.items():
        if name in names or not names:
            n_missed += keep(name, part())
    PAGE.write_text(page(read_results(), list(beside)))
    return int(n_missed > 0)


def keep(name: str, rows: list[dict[str, Any]]) -> int:
    """Write down and show what a part found; how many of its bounds were missed."""
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        found = ", ".join(f"{key} {value}" for key, value in row.items())
        print(f"{'MISSED' if misses(row) else 'ok':6} {name}: {found}", flush=True)
    return sum(map(misses, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
