"""Resident memory of one CartPole actor process, and of the other roles beside it.

    python benchmarks/memory.py [--json FILE]

Starts the roles as `qfleet train` does, lets them play and learn, and reads what the operating
system counts for each process. RSS holds pages shared with other processes (the interpreter, Ray's
library); USS is what would be freed if the process ended. An actor must not have torch: the program
fails when it has.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.cluster.roles import Roles
from qfleet.settings.plans import run_plans

MB = 1e6


def has_torch(pid: int) -> bool:
    """Whether torch's libraries are mapped into a process; False where nothing tells it."""
    maps = Path(f"/proc/{pid}/maps")
    return maps.exists() and "libtorch" in maps.read_text()


def memory_mb(pids: list[int]) -> dict[str, tuple[float, ...]]:
    """RSS and USS in MB, one value per process."""
    found = [psutil.Process(pid).memory_full_info() for pid in pids]
    return {name: tuple(getattr(info, name.lower()) / MB for info in found) for name in _KINDS}


_KINDS = ("RSS", "USS")


def play(roles: Roles, seconds: float) -> dict[str, list[int]]:
    """Run all roles for so long; their process ids, while they still run."""
    pids = roles.wait_until_ready()
    learner = roles.learner
    answer(learner.set_shards.remote(roles.shards), "benchmark", "the learner")
    learner.run.remote()
    for slot, actor in roles.actors.items():
        actor.run.remote(roles.shard_of(slot))
    pings = [a.ping.remote() for a in roles.actors.values()]
    actors = [answer(ping, "benchmark", "an actor to start", 120.0)["pid"] for ping in pings]
    time.sleep(seconds)
    return {"actor": actors, "replay shard": [pids["replay-0"]], "learner": [pids["learner"]]}


def measure(roles: Roles, arguments: Any) -> list[Measurement]:
    processes = play(roles, arguments.seconds)
    counters = [
        answer(actor.ping.remote(), "benchmark", "an actor's counters")
        for actor in roles.actors.values()
    ]
    if not all(counter["env_steps"] for counter in counters):
        raise SystemExit("an actor did not play: give it more --seconds")
    torch_in = [pid for pid in processes["actor"] if has_torch(pid)]
    if torch_in:
        raise SystemExit(f"{len(torch_in)} of the actor processes have imported torch")
    found = []
    for role, pids in processes.items():
        about = {"processes": len(pids), "torch": "yes" if has_torch(pids[0]) else "no"}
        for kind, values in memory_mb(pids).items():
            found.append(Measurement(f"{role}, {kind}", "MB", values, about))
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--actors", type=int, default=3, help="processes to take the median of")
    parser.add_argument("--seconds", type=float, default=10.0, help="of play before it is read")
    arguments = parser.parse_args()
    overrides: dict[str, object] = {
        "runtime": "ray",
        "actors.count": arguments.actors,
        "run.max_learner_steps": 1_000_000_000,
    }
    config, spec = resolved_preset("cartpole", overrides)
    cluster = connect(run_plans(config).cluster)
    try:
        roles = Roles(run_plans(config), spec, run_id="bench", device="cpu")
        try:
            for slot in range(arguments.actors):
                roles.create_actor(slot, 0)
            found = measure(roles, arguments)
        finally:
            roles.kill_all()
    finally:
        disconnect(cluster)
    finish("memory", arguments, found)


if __name__ == "__main__":
    main()
