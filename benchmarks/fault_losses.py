"""What faults cost: transitions by the ledger, updates per second, memory. Used by faults.py.

Runs, ledger and mutated messages are those of the tests.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "common"))

import ledger
import test_decoders
from fault_runs import Run

Rows = list[dict[str, Any]]

KILLS = 50
LONGEST_S = 600.0
"""Of one run, or until one goes on: speed is measured here and not the wait."""
ROLES = {"ActorShell": 2, "LearnerShell": 1, "ReplayServerShell": 2, "EvaluatorShell": 1}
"""How many processes each has."""
ORDER = ("ActorShell", "LearnerShell", "ActorShell", "ReplayServerShell", "EvaluatorShell")
"""Who is killed, in turn."""
LOST_PERCENT = (0, 1, 5)
LOST_UPDATES, LOST_REPEATS = 12_000, 3
LEAST_SPEED = 0.8
MUTATIONS_PER_KIND = 16_700
"""Six kinds: 100,000 messages."""
MEMORY_LIMIT_MIB = 16


def killed_roles() -> Rows:
    """Every role is killed again and again; then the books are held against the ledger."""
    changes = {
        **ledger.settings(Path("ledger")),
        "env__kwargs.folder": "ledger",
        "eval__period_learner_steps": 200,
        "eval__solved_at_return": 1_000_000,
        "replay__shards": 2,
        "run__checkpoint_period_s": 1,
        "run__max_env_steps": 1_000_000_000,  # it ends when all are killed
    }
    del changes["env__kwargs"]
    with Run(files={"ledger_env.py": ledger.ENVIRONMENT, "ledger/.keep": ""}, **changes) as run:
        (run.folder / "ledger" / ".keep").unlink()
        run.learns()
        others, killed = {run.process.pid}, Counter[str]()
        for role in itertools.islice(itertools.cycle(ORDER), KILLS):
            wait_until_it_goes_on(run, role, others)
            run.processes(role)[killed[role] % ROLES[role]].kill()
            killed[role] += 1
        wait_until_it_goes_on(run, "LearnerShell", others)
        run.process.terminate()
        _, how = run.exits(143, timeout_s=LONGEST_S)
        accounts = run.summary()["accounting"]
        steps = ledger.played(run.folder / "ledger", others)
        wrong, unknown = ledger.unaccounted(accounts, run.directory, steps)
    accounts["at_least"] = " and ".join(accounts["at_least"])
    kills = ", ".join(f"{n} × {role.removesuffix('Shell')}" for role, n in killed.items())
    about = {"kills": kills, "ended": how, "played": len(steps)}
    return [{**about, **accounts, "unknown": unknown, "wrong": wrong}]


def wait_until_it_goes_on(run: Run, role: str, others: set[int]) -> None:
    """Until two more cuts were made and all processes of `role` are there; notes evaluators."""
    cuts: set[str] = set()
    ends_s = time.monotonic() + LONGEST_S
    while len(cuts) < 3 or len(run.processes(role)) < ROLES[role]:
        if run.process.poll() is not None or time.monotonic() > ends_s:
            text = (run.folder / "stderr").read_text()[-2000:]
            raise SystemExit(f"the run does not go on before a {role} is killed:\n{text}")
        cuts.add((run.directory / "latest").resolve().name)
        others |= {process.pid for process in run.processes("EvaluatorShell")}
        time.sleep(0.05)


def lost_calls() -> Rows:
    """One call in so many is lost on its way there, and as many answers on their way back."""
    rates: dict[int, list[float]] = {percent: [] for percent in LOST_PERCENT}
    restarts: Counter[int] = Counter()
    for _ in range(LOST_REPEATS):
        for percent in LOST_PERCENT:
            failing = {
                "CoreWorkerService.grpc_client.PushTask": {
                    "num_failures": -1,
                    "req_failure_prob": percent,
                    "resp_failure_prob": percent,
                    "in_flight_failure_prob": 0,
                }
            }
            environment = {"RAY_testing_rpc_failure": json.dumps(failing)} if percent else {}
            changes = {"replay__shards": 2, "replay__sampling": "prioritized"}
            changes |= {"run__max_learner_steps": str(LOST_UPDATES)}
            with Run(environment=environment, **changes) as run:
                run.exits(0, timeout_s=LONGEST_S)
                summary = run.summary()
            rates[percent].append(round(float(summary["learner_steps_per_s"]), 1))
            restarts[percent] += int(summary["role_restarts"]) + len(summary["incidents"])
    free = statistics.median(rates[0])
    return [
        {
            "percent": percent,
            "updates/s": " / ".join(f"{rate:,.0f}" for rate in found),
            "of fault-free": round(statistics.median(found) / free, 3),
            "restarts and incidents": restarts[percent],
        }
        for percent, found in rates.items()
    ]


def mutated_messages() -> Rows:
    """Messages with a few bytes or one value changed are decoded."""
    rows = []
    for kind in test_decoders.KINDS:
        refused, peak_bytes = test_decoders.decode_mutated(kind, MUTATIONS_PER_KIND)
        mib = round(peak_bytes / 2**20, 2)
        rows.append({"kind": kind, "mutated": MUTATIONS_PER_KIND, "refused": refused, "MiB": mib})
    return rows


LOSSES = (killed_roles, lost_calls, mutated_messages)
