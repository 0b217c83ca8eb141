"""What a ping and a call with a parameter snapshot cost the process that sends them.

    python benchmarks/call_cost.py [--json FILE]

Real actors that do not play, pinged as the driver pings them and given snapshots as a shard's
answers give them: encoded once, a call to each. `thread` is the CPU time of the thread that sends;
`process` includes the threads of Ray beside it; `receiver` is the actor's, decoding and building
the network included. The MLP of the default preset travels inside the call, the larger one through
Ray's object store. What publishing costs the learner's training: `publishing_cost.py`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
from machine import finish, make_parser
from producers import RUN_ID, START_TIMEOUT_S

from qfleet.actors.remote import remote_actor_class
from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import first_snapshot, resolved_preset
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.cluster.roles import answer
from qfleet.common.messages import encode_snapshot
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import ParamsOffer, ParamsSnapshot
from qfleet.fleets.async_loop import PolledCall
from qfleet.learner.remote_publisher import INLINE_SNAPSHOT_BYTES
from qfleet.settings.plans import run_plans

BLOCK_S = 0.005
"""Between asking and taking answers: about a block of the default preset."""
WARM_UP_SENDS = 10
MB = 1e6


class Spent(NamedTuple):
    """Seconds of CPU time."""

    thread: float
    process: float
    receivers: float


class Meter:
    """Adds up the sender's CPU time, and reads the receivers'."""

    def __init__(self, receivers: list[psutil.Process]) -> None:
        self._receivers = receivers
        self._received_before_s = self._received_s()
        self._process_before_s = time.process_time()
        self._thread_s = 0.0

    def _received_s(self) -> float:
        times = [process.cpu_times() for process in self._receivers]
        return sum(each.user + each.system for each in times)

    def run(self, call: Callable[[], Any]) -> Any:
        """Count the calling thread's time for `call`."""
        before_s = time.thread_time()
        result = call()
        self._thread_s += time.thread_time() - before_s
        return result

    def spent(self) -> Spent:
        """Since the beginning."""
        process_s = time.process_time() - self._process_before_s
        return Spent(self._thread_s, process_s, self._received_s() - self._received_before_s)


def start_actors(config: Any, spec: Any, n_actors: int) -> list[Any]:
    """Actors of one network, once they can answer."""
    plan = run_plans(config).actor
    arguments = (plan_to_json(plan), spec.to_json(), [], RUN_ID)
    make = remote_actor_class().options(num_cpus=plan.num_cpus)
    actors = [make.remote(*arguments, slot, 0) for slot in range(n_actors)]
    for actor in actors:
        answer(actor.ping.remote(), "benchmark", "an actor to start", START_TIMEOUT_S)
    return actors


def processes(actors: list[Any]) -> list[psutil.Process]:
    pings = [answer(actor.ping.remote(), "benchmark", "an actor's process id") for actor in actors]
    return [psutil.Process(ping["pid"]) for ping in pings]


def measure_pings(actors: list[Any], rounds: int, period_s: float) -> Spent:
    """The driver's rounds: ask everybody, a period later take what has come."""
    polls = [PolledCall(actor.ping.remote, "an actor", 0.0) for actor in actors]
    meter = Meter(processes(actors))
    for _ in range(rounds):
        for poll in polls:
            meter.run(lambda poll=poll: poll.poll(time.monotonic()))
        time.sleep(period_s)
        for poll in polls:
            meter.run(lambda poll=poll: poll.poll(time.monotonic()))
    return meter.spent()


def measure_snapshots(
    actors: list[Any], snapshots: Iterator[ParamsSnapshot], sends: int
) -> tuple[Spent, int]:
    """Each actor takes so many snapshots; the CPU times, and how many calls were made."""
    import ray

    meter = Meter(processes(actors))

    def send(snapshot: ParamsSnapshot) -> list[Any]:
        payload: Any = encode_snapshot(snapshot)
        if len(payload) > INLINE_SNAPSHOT_BYTES:
            payload = [ray.put(payload)]
        offer = list(ParamsOffer(snapshot.version, 0, payload))
        return [actor.act.remote(0, offer) for actor in actors]

    for _ in range(sends):
        newer = next(snapshots)
        refs = meter.run(lambda newer=newer: send(newer))
        time.sleep(BLOCK_S)
        for ref in refs:
            meter.run(lambda ref=ref: answer(ref, "benchmark", "an actor to take parameters"))
    return meter.spent(), sends * len(actors)


def rows(name: str, unit_calls: list[tuple[Spent, int]], **detail: Any) -> list[Measurement]:
    """One row per side: milliseconds per call, one value per repeat."""
    return [
        Measurement(
            f"{name}, {side}",
            "ms/call",
            tuple(1000.0 * getattr(spent, field) / calls for spent, calls in unit_calls),
            detail,
        )
        for side, field in (
            ("thread", "thread"),
            ("process", "process"),
            ("receiver", "receivers"),
        )
    ]


def measure_network(hidden_sizes: list[int], arguments: Any) -> list[Measurement]:
    config, spec = configuration(hidden_sizes, arguments.actors)
    actors = start_actors(config, spec, arguments.actors)
    found: list[Measurement] = []
    try:
        snapshot = first_snapshot(run_plans(config).learner, spec)
        # An actor ignores what is not newer than what it has.
        newer = (replace(snapshot, version=version) for version in itertools.count(1))
        measure_snapshots(actors, newer, WARM_UP_SENDS)
        if hidden_sizes == [128, 64]:
            rounds, n = arguments.rounds, len(actors)
            pings = [measure_pings(actors, rounds, BLOCK_S) for _ in range(arguments.repeats)]
            found += rows("ping", [(spent, rounds * n) for spent in pings], actors=n)
        sent = [measure_snapshots(actors, newer, arguments.sends) for _ in range(arguments.repeats)]
        name = f"snapshot, MLP {'-'.join(map(str, hidden_sizes))}"
        found += rows(name, sent, bytes=len(encode_snapshot(snapshot)), actors=len(actors))
    finally:
        end(actors)
    return found


def end(actors: list[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor, no_restart=True)


def configuration(hidden_sizes: list[int], n_actors: int) -> tuple[Any, Any]:
    overrides: dict[str, object] = {
        "actors.count": n_actors,
        "network.hidden_sizes": hidden_sizes,
    }
    return resolved_preset("cartpole", overrides)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["128-64", "512-512"])
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200, help="of pings, per repeat")
    parser.add_argument("--sends", type=int, default=100, help="snapshots per actor and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cluster = connect(run_plans(configuration([128, 64], arguments.actors)[0]).cluster)
    try:
        found = []
        for network in arguments.networks:
            found += measure_network([int(size) for size in network.split("-")], arguments)
        rss = psutil.Process().memory_info().rss / MB
        found.append(Measurement("process with Ray and torch, RSS", "MB", (rss,)))
    finally:
        disconnect(cluster)
    finish("call_cost", arguments, found)


if __name__ == "__main__":
    main()
