"""How much replay shards take until they no longer follow, and the CPU time that each call costs.

    python benchmarks/replay_saturation.py [--json FILE]

Synthetic producers push CartPole chunks at a set pace, two in flight as an actor has. The pace
rises step by step, at 1, 2 and 4 shards, until fewer than 95 % of the chunks that fall due are
acknowledged in time; there it is held for the saturating rate, then at half of that rate for the
latencies. These count from when a chunk was due, so that waiting for a place in the window is part
of them. At the saturating pace also with a consumer beside it that samples as fast as answers come.
At one shard the same with small chunks, and samples of two sizes alone. In the end the shards'
counters must equal what their clients saw, else the program fails.

All processes share this machine's cores. What carries over to another machine is the CPU time per
call, of the shard, of its client and of Ray's own processes: `scaling.py` predicts from it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import psutil
import ray
from machine import finish, latency, make_parser
from producers import (
    RUN_ID,
    Consumer,
    cpu_s,
    processes_of,
    start_producers,
    start_shards,
)
from saturation_steps import (
    CpuTimes,
    Step,
    acknowledged_in_time,
    cpu_row,
    highest_within,
    paces,
    step_row,
)

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import SEED, random_columns, resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.messages import encode_chunk
from qfleet.common.types import ChunkId, ReplayStats, TransitionChunk
from qfleet.settings.plans import run_plans

SHARD_CAPACITY = 250_000
MARGIN_S = 120.0
MB = 1e6


class Load:
    """Shards full of transitions, their clients, and the processes whose CPU time is counted."""

    def __init__(self, config: Any, spec: Any, n_shards: int, chunk: int, arguments: Any) -> None:
        self._seconds, self._chunk = arguments.seconds, chunk
        self.shards = start_shards(config, spec, n_shards)
        self.producers = start_producers(spec, [chunk] * arguments.producers)
        self.consumer = ray.remote(num_cpus=0, max_restarts=0)(Consumer).remote()
        self._shard_processes = processes_of(shard.ready.remote() for shard in self.shards)
        clients = [*self.producers, self.consumer]
        self._client_processes = processes_of(client.pid.remote() for client in clients)
        self._sampled = 0
        rows = SHARD_CAPACITY * n_shards // len(self.producers)
        refs = [p.fill.remote(self._shard_of(slot), rows) for slot, p in enumerate(self.producers)]
        self._inserted = sum(
            answer(ref, "benchmark", "a shard to be filled", MARGIN_S) for ref in refs
        )

    def _shard_of(self, slot: int) -> Any:
        return self.shards[slot % len(self.shards)]

    def cpu_times(self) -> CpuTimes:
        """Of everybody until now."""
        driver = psutil.Process()
        counted = [*self._shard_processes, *self._client_processes]
        own = [driver, *(p for p in driver.children(recursive=True) if p not in counted)]
        shards, clients = cpu_s(self._shard_processes), cpu_s(self._client_processes)
        rays = cpu_s(own)
        machine = psutil.cpu_times()
        busy = machine.user + machine.system + machine.nice
        busy += getattr(machine, "irq", 0.0) + getattr(machine, "softirq", 0.0)
        return CpuTimes(shards, clients, rays, busy - shards - clients - rays)

    def hold(self, calls_per_s: float) -> Step:
        """Every producer pushes at its share of the pace."""
        seconds, n = self._seconds, len(self.producers)
        before, started_s = self.cpu_times(), time.monotonic()
        refs = [
            producer.pace.remote(self._shard_of(slot), seconds, n / calls_per_s)
            for slot, producer in enumerate(self.producers)
        ]
        parts = [answer(ref, "benchmark", "a producer", seconds + MARGIN_S) for ref in refs]
        elapsed_s = time.monotonic() - started_s
        spent = self.cpu_times().since(before)
        in_time = sum(acknowledged_in_time(events, seconds) for events in parts)
        took_ms = tuple(1000.0 * took_s for events in parts for _, took_s in events)
        self._inserted += len(took_ms) * self._chunk
        return Step(len(took_ms) / seconds, in_time / seconds, took_ms, spent, elapsed_s)

    def sample(self, draws: int) -> tuple[Step, int]:
        """The consumer asks as fast as answers come; also how many calls that were."""
        before, started_s = self.cpu_times(), time.monotonic()
        ref = self.consumer.pull.remote(self.shards, draws, self._seconds, 2)
        pulled = answer(ref, "benchmark", "the consumer", self._seconds + MARGIN_S)
        spent = self.cpu_times().since(before)
        self._sampled += sum(pulled["received"])
        calls = sum(pulled["received"]) // (draws // len(self.shards))
        rate = pulled["in_time"] / draws * len(self.shards) / pulled["seconds"]
        return Step(rate, rate, (), spent, time.monotonic() - started_s), calls

    def both(self, calls_per_s: float, draws: int) -> tuple[float, float]:
        """Transitions per second inserted at that pace, and sampled as fast as answers come."""
        ref = self.consumer.pull.remote(self.shards, draws, self._seconds, 2)
        inserted = self.hold(calls_per_s).acknowledged_per_s * self._chunk
        pulled = answer(ref, "benchmark", "the consumer", self._seconds + MARGIN_S)
        self._sampled += sum(pulled["received"])
        return inserted, pulled["in_time"] / pulled["seconds"]

    def shard_rss_mb(self) -> tuple[float, ...]:
        """Resident memory of each shard's process."""
        return tuple(process.memory_info().rss / MB for process in self._shard_processes)

    def ray_rss_mb(self) -> float:
        """Resident memory of Ray's own processes on this host."""
        counted = [*self._shard_processes, *self._client_processes]
        children = psutil.Process().children(recursive=True)
        own = [p for p in children if p not in counted and not p.name().startswith("ray::")]
        return sum(process.memory_info().rss for process in own) / MB

    def check_counts(self) -> None:
        """Nothing was lost, stored twice or refused."""
        refs = [shard.stats.remote() for shard in self.shards]
        stats = [ReplayStats(*answer(ref, "benchmark", "replay counters")) for ref in refs]
        got = [
            sum(getattr(each, name) for each in stats)
            for name in (
                "inserted",
                "sampled",
                "duplicate_chunks",
                "rejected_transitions",
                "gap_chunks",
            )
        ]
        wanted = [self._inserted, self._sampled, 0, 0, 0]
        if got != wanted:
            raise SystemExit(f"the shards counted {got}, their clients {wanted}")

    def end(self) -> None:
        """End every process."""
        for handle in [*self.producers, self.consumer, *self.shards]:
            ray.kill(handle, no_restart=True)


def climb(load: Load, arguments: Any) -> list[Step]:
    """Steps of rising pace; the last one is the first that the shards twice did not follow."""
    steps: list[Step] = []
    for pace in paces(arguments.first, arguments.growth, arguments.steps):
        step = load.hold(pace)
        if not step.follows:  # once may be somebody else's doing
            step = load.hold(pace)
        steps.append(step)
        if not step.follows:
            return steps
    raise SystemExit(f"{pace:.0f} calls/s were still followed: give it more --steps")


def chunk_row(spec: Any, rows: int) -> Measurement:
    """Bytes of one chunk as it travels."""
    columns = random_columns(np.random.default_rng(SEED), rows, spec)
    data = encode_chunk(TransitionChunk(ChunkId(RUN_ID, 0, 0, 0), columns, None, 1, rows))
    return Measurement(f"chunk of {rows}", "bytes", (float(len(data)),))


def measure_inserts(load: Load, cell: str, chunk: int, arguments: Any) -> list[Measurement]:
    steps = climb(load, arguments)
    offered = steps[-1].offered_per_s
    saturated = [load.hold(offered) for _ in range(arguments.repeats)]
    rates = tuple(step.acknowledged_per_s for step in saturated)
    half = load.hold(statistics.median(rates) / 2)
    both = [load.both(offered, arguments.draws[0]) for _ in range(arguments.repeats)]
    about = {"chunk": chunk, "producers": arguments.producers, "offered": round(offered, 1)}
    elsewhere = statistics.median(step.cores()["elsewhere"] for step in saturated)
    within = highest_within(steps, arguments.p99_bound_ms)
    return [
        Measurement(
            f"{cell}, saturating calls", "calls/s", rates, {**about, "elsewhere cores": elsewhere}
        ),
        Measurement(
            f"{cell}, saturating transitions",
            "transitions/s",
            tuple(rate * chunk for rate in rates),
            about,
        ),
        Measurement(f"{cell}, inserts while sampling", "transitions/s", tuple(i for i, _ in both)),
        Measurement(f"{cell}, samples while inserting", "transitions/s", tuple(s for _, s in both)),
        Measurement(f"{cell}, p99 ≤ {arguments.p99_bound_ms:g} ms up to", "calls/s", (within,)),
        latency(f"{cell}, half load", half.latencies_ms, offered=round(half.offered_per_s, 1)),
        cpu_row(f"{cell}, CPU per call, half load", [half.cpu_ms_per_call()]),
        cpu_row(f"{cell}, CPU per call, saturating", [s.cpu_ms_per_call() for s in saturated]),
        Measurement(f"{cell}, RSS of a shard", "MB", load.shard_rss_mb()),
        *(step_row(cell, step) for step in steps),
    ]


def measure_samples(load: Load, cell: str, draws: int, arguments: Any) -> list[Measurement]:
    found = [load.sample(draws) for _ in range(arguments.repeats)]
    per_call = [
        {
            "shards": 1000 * step.cpu_s.shards / calls,
            "clients": 1000 * step.cpu_s.clients / calls,
            "ray": 1000 * step.cpu_s.ray / calls,
        }
        for step, calls in found
    ]
    rates = tuple(step.acknowledged_per_s for step, _ in found)
    about = {"draws": draws}
    return [
        Measurement(f"{cell}, samples of {draws}", "calls/s", rates, about),
        cpu_row(f"{cell}, CPU per sample of {draws}", per_call),
    ]


def measure(config: Any, spec: Any, n_shards: int, chunk: int, arguments: Any) -> list[Measurement]:
    plural = "shard" if n_shards == 1 else "shards"
    cell = f"{n_shards} {plural}, chunk {chunk}"
    load = Load(config, spec, n_shards, chunk, arguments)
    try:
        found = measure_inserts(load, cell, chunk, arguments)
        if (n_shards, chunk) == (1, arguments.chunk):
            for draws in arguments.draws:
                found += measure_samples(load, cell, draws, arguments)
            found.append(Measurement("Ray's own processes, RSS", "MB", (load.ray_rss_mb(),)))
        load.check_counts()
    finally:
        load.end()
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--producers", type=int, default=4, help="at least one per shard")
    parser.add_argument("--chunk", type=int, default=512, help="transitions per push")
    parser.add_argument("--small-chunk", type=int, default=128, help="the same at 1 shard")
    parser.add_argument("--draws", type=int, nargs="+", default=[3_200, 800], help="per sample")
    parser.add_argument("--first", type=float, default=100.0, help="calls/s of the first step")
    parser.add_argument("--growth", type=float, default=1.5, help="from step to step")
    parser.add_argument("--steps", type=int, default=12, help="at most")
    parser.add_argument("--p99-bound-ms", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one step")
    arguments = parser.parse_args()
    most = max(arguments.shards)
    if arguments.producers < most:
        parser.error(f"{most} shards need as many --producers")
    overrides: dict[str, object] = {
        "actors.count": most,
        "replay.shards": most,
        "replay.capacity": SHARD_CAPACITY * most,
        "replay.samples_per_insert": None,
        "replay.min_size_to_sample": 1,
    }
    config, spec = resolved_preset("cartpole", overrides)
    cluster = connect(run_plans(config).cluster)
    try:
        found = [chunk_row(spec, chunk) for chunk in (arguments.chunk, arguments.small_chunk)]
        for n_shards in arguments.shards:
            found += measure(config, spec, n_shards, arguments.chunk, arguments)
        found += measure(config, spec, 1, arguments.small_chunk, arguments)
    finally:
        disconnect(cluster)
    finish("replay_saturation", arguments, found)


if __name__ == "__main__":
    main()
