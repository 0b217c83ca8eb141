"""Injects faults into real runs and measures how long each takes to be answered.

    python benchmarks/faults.py [NAME ...]     (`make faults`: all of them, ten minutes)

Every fault is a run of its own, started by the command line as a user would start it. The results
are kept in benchmarks/results/faults.json; docs/reliability.md is written from that file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from fault_runs import ANSWER_TIMEOUT_S, ROOT, Run

Answers = Iterator[tuple[str, float, float, str]]
"""Runtime, bound in seconds, seconds taken, and the answer in words."""
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Answer:
    """How a fault was answered."""

    name: str
    runtime: str
    within_s: float
    seconds: float
    answer: str


def says(run: Run, pattern: str) -> float:
    """Seconds until the console shows that text."""
    took_s = run.wait_for(lambda e: bool(re.search(pattern, str(e))), ANSWER_TIMEOUT_S)
    return took_s if run.process.poll() is None else float("inf")


def summary_of(run: Run) -> dict[str, Any]:
    """What the run left as its summary; empty without one."""
    path = run.folder / "run" / "summary.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def exits(run: Run, *codes: int) -> tuple[float, str]:
    """Seconds until the run has ended with one of these codes and a summary."""
    took_s = run.ends()
    code = run.process.returncode
    has_summary = summary_of(run).get("exit_code") == code
    is_right = code in codes and (has_summary or code == 2)
    return (took_s if is_right else float("inf")), f"exit {code}" + ", summary" * has_summary


def stopped_role(role: str, text: str) -> Answers:
    """A role that is stopped, with a checkpoint due every two seconds."""
    with Run() as run:
        run.learns()
        run.role(role).suspend()
        yield "ray", 60.0, says(run, text), "replaced"


def stopped_learner() -> Answers:
    """The learner is stopped while a checkpoint is due."""
    yield from stopped_role("LearnerShell", "all roles start again")


def stopped_shard() -> Answers:
    """A replay shard is stopped while a checkpoint is due."""
    yield from stopped_role("ReplayServerShell", "all roles start again")


def stopped_evaluator() -> Answers:
    """The evaluator is stopped."""
    yield from stopped_role("EvaluatorShell", "evaluator.*a new one takes its place")


def hung_environment() -> Answers:
    """An environment hangs in `step` while others play."""
    for schedule, text in (("async", r"actor \d died \(its env"), ("lockstep", "start again")):
        changes = {"env__factory": "fault_env:make", "run__schedule": schedule}
        with Run(**changes) as run:
            run.learns()
            (run.folder / "hang").write_text(str(run.role("ActorShell").pid))
            yield f"ray, {schedule}", 60.0, says(run, text), "replaced"


def sigterm_beside_a_hung_role() -> Answers:
    """SIGTERM while the learner is stopped or an environment hangs."""
    with Run() as run:
        run.learns()
        run.role("LearnerShell").suspend()
        time.sleep(3.0)
        run.process.terminate()
        yield "ray", 15.0, *exits(run, 143)
    with Run(env__factory="fault_env:make", runtime="local") as run:
        run.learns()
        (run.folder / "hang").write_text("any")
        time.sleep(3.0)
        run.process.terminate()
        yield "local", 15.0, *exits(run, 143)


def group_signals() -> Answers:
    """A signal to the whole process group."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for runtime in ("ray", "local"):
            with Run(runtime=runtime) as run:
                run.learns()
                os.killpg(run.process.pid, number)
                took_s, answer = exits(run, 128 + number)
                yield f"{runtime}, {number.name}", 15.0, took_s, answer


def sigterm_to_a_role() -> Answers:
    """SIGTERM to a single actor."""
    with Run() as run:
        run.learns()
        run.role("ActorShell").terminate()
        yield "ray", 15.0, says(run, "plays again"), "replaced"


def lost_cluster() -> Answers:
    """Raylet or GCS is killed."""
    for service in ("raylet", "gcs_server"):
        with Run() as run:
            run.learns()
            run.role(service).kill()
            took_s, answer = exits(run, 5)
            yield f"ray, {service}, training", 60.0, took_s, answer
        with Run() as run:
            run.role("raylet")
            time.sleep(2.0)
            run.role(service).kill()
            took_s, answer = exits(run, 5, 2)
            yield f"ray, {service}, before training", 60.0, took_s, answer


def silent_address() -> Answers:
    """`ray.address` names a port that is dead, or that answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with Run("--ray.address", address) as run:
            yield "ray, dead", 60.0, *exits(run, 2)
        listening.listen()
        with Run("--ray.address", address) as run:
            yield "ray, silent", 60.0, *exits(run, 2)


def same_death_again() -> Answers:
    """Every observation is NaN from some step on."""
    for runtime in ("ray", "local"):
        with Run(env__factory="fault_env:make", runtime=runtime) as run:
            run.learns()
            (run.folder / "nan").write_text("any")
            took_s, answer = exits(run, 5)
            yield runtime, 60.0, took_s, answer


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


FAULTS = (
    stopped_learner,
    stopped_shard,
    stopped_evaluator,
    hung_environment,
    sigterm_beside_a_hung_role,
    group_signals,
    sigterm_to_a_role,
    lost_cluster,
    silent_address,
    same_death_again,
    killed_driver,
)


def main(names: list[str]) -> int:
    """Inject the named faults, or all; 1 when one was not answered within its bound."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missed = 0
    for fault in FAULTS:
        if names and fault.__name__ not in names:
            continue
        answers = []
        for runtime, within_s, seconds, text in fault():
            answers.append(Answer(str(fault.__doc__).rstrip("."), runtime, within_s, seconds, text))
            print(f"{fault.__name__:28} {runtime:32} {seconds:6.1f} s of {within_s:g}: {text}")
            missed += seconds > within_s
        kept[fault.__name__] = [asdict(answer) for answer in answers]
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    ordered = [kept[fault.__name__] for fault in FAULTS if fault.__name__ in kept]
    PAGE.write_text(page([row for rows in ordered for row in rows]))
    return int(missed > 0)


def page(rows: list[dict[str, object]]) -> str:
    """docs/reliability.md from the results."""
    lines = [
        "# Reliability",
        "",
        "Generated by `make faults` (benchmarks/faults.py); do not edit. Each fault is injected "
        "into a real run; the seconds are from the fault to its answer, on two loaded cores.",
        "",
        "| fault | runtime | seconds | at most | answer |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = float(str(row["seconds"]))
        shown = f"{seconds:.1f}" if seconds < float("inf") else "never"
        lines.append(
            f"| {row['name']} | {row['runtime']} | {shown} | {row['within_s']} | {row['answer']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
