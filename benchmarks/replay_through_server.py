"""Transitions per second through replay server processes: synthetic producers and one consumer.

    python benchmarks/replay_through_server.py [--json FILE]

Each producer pushes CartPole chunks of 512 to one shard, two in flight as an actor has; the
consumer asks every shard for the draws of one block of the default preset, two requests in flight
as the learner has, and decodes them. At 1, 2 and 4 shards: pushing alone, sampling alone, both at
once. Afterwards the shards' counters must equal what the clients saw, else the program fails.

With few cores the clients take part of the machine: the figures are those of the whole exchange,
not the limit of a server with cores of its own.
"""

from __future__ import annotations

import collections
import time
from typing import Any

import ray
from machine import finish, make_parser
from producers import start_producers, start_shards

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.cluster.roles import answer
from qfleet.common.messages import decode_shard_sample
from qfleet.common.types import ReplayStats
from qfleet.settings.plans import run_plans

SHARD_CAPACITY = 250_000
MARGIN_S = 60.0


class Consumer:
    """A learner that only asks and decodes."""

    def ready(self) -> bool:
        """True, once it can answer."""
        return True

    def pull(self, shards: list[Any], draws: int, seconds: float, in_flight: int) -> dict[str, Any]:
        """Ask for `draws` over all shards for so long; transitions received per shard."""
        per_shard = draws // len(shards)
        received = [0] * len(shards)
        waiting: collections.deque[list[Any]] = collections.deque()
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            while len(waiting) < in_flight:
                waiting.append([shard.sample.remote(per_shard) for shard in shards])
            self._take(waiting.popleft(), received)
        elapsed_s, in_time = time.monotonic() - started, sum(received)
        for refs in waiting:
            self._take(refs, received)
        return {"received": received, "in_time": in_time, "seconds": elapsed_s}

    def _take(self, refs: list[Any], received: list[int]) -> None:
        for data in ray.get(refs, timeout=MARGIN_S):
            sample = decode_shard_sample(data)
            received[sample.shard] += len(sample.item_keys)


class Exchange:
    """Shards, producers and a consumer, with the counts that the shards must arrive at."""

    def __init__(self, config: Any, spec: Any, n_shards: int, arguments: Any) -> None:
        self._arguments = arguments
        self.shards = start_shards(config, spec, n_shards)
        n_producers = max(arguments.producers, n_shards)
        self.producers = start_producers(spec, [arguments.chunk] * n_producers)
        self.consumer = ray.remote(num_cpus=0, max_restarts=0)(Consumer).remote()
        answer(self.consumer.ready.remote(), "benchmark", "the consumer to start", MARGIN_S)
        self._inserted, self._sampled = [0] * n_shards, [0] * n_shards

    def run(self, push: bool, pull: bool) -> tuple[float, float]:
        """One repeat: (transitions inserted per second, transitions sampled per second)."""
        seconds, n = self._arguments.seconds, len(self.shards)
        in_flight = self._arguments.in_flight
        pushes = {
            slot: producer.push.remote(self.shards[slot % n], seconds, in_flight)
            for slot, producer in enumerate(self.producers)
            if push
        }
        draws = self._arguments.draws
        pulling = None
        if pull:
            pulling = self.consumer.pull.remote(self.shards, draws, seconds, in_flight)
        insert_rate = sample_rate = 0.0
        for slot, ref in pushes.items():
            pushed = answer(ref, "benchmark", "a producer", seconds + MARGIN_S)
            insert_rate += pushed["in_time"] / pushed["seconds"]
            self._inserted[slot % n] += pushed["transitions"]
        if pulling is not None:
            pulled = answer(pulling, "benchmark", "the consumer", seconds + MARGIN_S)
            sample_rate = pulled["in_time"] / pulled["seconds"]
            self._sampled = [a + b for a, b in zip(self._sampled, pulled["received"], strict=True)]
        return insert_rate, sample_rate

    def check_counts(self) -> None:
        """Nothing was lost, stored twice or refused."""
        for index, shard in enumerate(self.shards):
            stats = ReplayStats(*answer(shard.stats.remote(), "benchmark", "replay counters"))
            wanted = (self._inserted[index], self._sampled[index], 0, 0, 0)
            got = (
                stats.inserted,
                stats.sampled,
                stats.duplicate_chunks,
                stats.rejected_transitions,
                stats.gap_chunks,
            )
            if got != wanted:
                raise SystemExit(f"shard {index} counted {got}, the clients {wanted}")

    def end(self) -> None:
        """End every process."""
        for handle in [*self.producers, self.consumer, *self.shards]:
            ray.kill(handle, no_restart=True)


def measure(config: Any, spec: Any, n_shards: int, arguments: Any) -> list[Measurement]:
    exchange = Exchange(config, spec, n_shards, arguments)
    try:
        exchange.run(push=True, pull=False)  # also fills the memory
        phases = {
            "insert alone": [exchange.run(True, False)[0] for _ in range(arguments.repeats)],
            "sample alone": [exchange.run(False, True)[1] for _ in range(arguments.repeats)],
        }
        both = [exchange.run(True, True) for _ in range(arguments.repeats)]
        phases["insert, while sampling"] = [rates[0] for rates in both]
        phases["sample, while inserting"] = [rates[1] for rates in both]
        exchange.check_counts()
        about = {"producers": len(exchange.producers), "counts": "equal"}
    finally:
        exchange.end()
    plural = "shard" if n_shards == 1 else "shards"
    return [
        Measurement(f"{n_shards} {plural}, {phase}", "transitions/s", tuple(rates), about)
        for phase, rates in phases.items()
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--producers", type=int, default=2, help="at least one per shard")
    parser.add_argument("--chunk", type=int, default=512, help="transitions per push")
    parser.add_argument("--draws", type=int, default=3_200, help="draws per request")
    parser.add_argument("--in-flight", type=int, default=2, help="calls in flight per client")
    parser.add_argument("--sampling", choices=("uniform", "prioritized"), default="uniform")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.2, help="of one repeat")
    arguments = parser.parse_args()
    most = max(arguments.shards)
    overrides: dict[str, object] = {
        "actors.count": most,
        "replay.shards": most,
        "replay.capacity": SHARD_CAPACITY * most,
        "replay.sampling": arguments.sampling,
        "replay.samples_per_insert": None,
        "replay.min_size_to_sample": 1,
    }
    config, spec = resolved_preset("cartpole", overrides)
    cluster = connect(run_plans(config).cluster)
    try:
        found = []
        for n_shards in arguments.shards:
            found += measure(config, spec, n_shards, arguments)
    finally:
        disconnect(cluster)
    finish("replay_through_server", arguments, found)


if __name__ == "__main__":
    main()
