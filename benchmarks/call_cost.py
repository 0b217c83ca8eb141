"""What a ping and a call with a parameter snapshot cost who sends and who takes it.

    python benchmarks/call_cost.py [--json FILE]

Real actors that do not play, pinged as the driver pings them and given snapshots as a shard's
answers give them: encoded once, a call to each. `thread` is the CPU time of the thread that sends,
`receiver` the actor's process, decoding and building the network included. The MLP of the default
preset travels inside the call, the larger one through Ray's object store. What publishing costs the
learner's training: `publishing_cost.py`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import ray
from machine import finish, make_parser
from producers import RUN_ID, START_TIMEOUT_S, cpu_s

from qfleet.actors.remote import remote_actor_class
from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import first_snapshot, resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.messages import encode_snapshot
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import ParamsOffer
from qfleet.learner.remote_publisher import INLINE_SNAPSHOT_BYTES
from qfleet.settings.plans import run_plans

BLOCK_S = 0.005
"""Between asking and taking answers: about a block of the default preset."""
WARM_UP_ROUNDS = 10


def measure(
    name: str, actors: list[Any], send_all: Callable[[], list[Any]], arguments: Any, **detail: Any
) -> list[Measurement]:
    """One row per side: milliseconds of CPU per call, one value per repeat."""
    pings = [answer(actor.ping.remote(), "benchmark", "an actor's process id") for actor in actors]
    receivers = [psutil.Process(ping["pid"]) for ping in pings]
    sides: dict[str, list[float]] = {"thread": [], "receiver": []}
    for repeat in range(-1, arguments.repeats):
        rounds = WARM_UP_ROUNDS if repeat < 0 else arguments.rounds
        thread_s, received_s = 0.0, cpu_s(receivers)
        for _ in range(rounds):
            before_s = time.thread_time()
            refs = send_all()
            thread_s += time.thread_time() - before_s
            time.sleep(BLOCK_S)
            before_s = time.thread_time()
            for ref in refs:
                answer(ref, "benchmark", "an actor")
            thread_s += time.thread_time() - before_s
        if repeat >= 0:
            calls = rounds * len(actors)
            sides["thread"].append(1000 * thread_s / calls)
            sides["receiver"].append(1000 * (cpu_s(receivers) - received_s) / calls)
    about = {"actors": len(actors), **detail}
    return [Measurement(f"{name}, {s}", "ms/call", tuple(v), about) for s, v in sides.items()]


def start_actors(config: Any, spec: Any) -> list[Any]:
    """Actors of one network, once they can answer."""
    plan = run_plans(config).actor
    arguments = (plan_to_json(plan), spec.to_json(), [], RUN_ID)
    make = remote_actor_class().options(num_cpus=plan.num_cpus)
    actors = [make.remote(*arguments, slot, 0, [slot, plan.count]) for slot in range(plan.count)]
    for actor in actors:
        answer(actor.ping.remote(), "benchmark", "an actor to start", START_TIMEOUT_S)
    return actors


def measure_network(hidden_sizes: list[int], arguments: Any) -> list[Measurement]:
    config, spec = configuration(hidden_sizes, arguments.actors)
    actors = start_actors(config, spec)
    snapshot = first_snapshot(run_plans(config).learner, spec)
    versions = itertools.count(1)  # an actor ignores what is not newer than what it has

    def send_snapshots() -> list[Any]:
        newer = replace(snapshot, version=next(versions))
        payload: Any = encode_snapshot(newer)
        if len(payload) > INLINE_SNAPSHOT_BYTES:
            payload = [ray.put(payload)]
        offer = list(ParamsOffer(newer.version, 0, payload))
        return [actor.act.remote(0, offer) for actor in actors]

    found: list[Measurement] = []
    try:
        if hidden_sizes == [128, 64]:
            found += measure("ping", actors, lambda: [a.ping.remote() for a in actors], arguments)
        name = f"snapshot, MLP {'-'.join(map(str, hidden_sizes))}"
        n_bytes = len(encode_snapshot(snapshot))
        found += measure(name, actors, send_snapshots, arguments, bytes=n_bytes)
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)
    return found


def configuration(hidden_sizes: list[int], n_actors: int) -> tuple[Any, Any]:
    overrides: dict[str, object] = {"actors.count": n_actors, "network.hidden_sizes": hidden_sizes}
    return resolved_preset("cartpole", overrides)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["128-64", "512-512"])
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=100, help="calls to each actor, per repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cluster = connect(run_plans(configuration([128, 64], arguments.actors)[0]).cluster)
    try:
        found = []
        for network in arguments.networks:
            found += measure_network([int(size) for size in network.split("-")], arguments)
    finally:
        disconnect(cluster)
    finish("call_cost", arguments, found)


if __name__ == "__main__":
    main()
