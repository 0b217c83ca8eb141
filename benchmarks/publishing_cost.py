"""What publishing parameters costs the learner, by the number of actors that pull them.

    python benchmarks/publishing_cost.py [--json FILE]

This process publishes as a learner does: every block's time a new version, handed to the publisher,
which announces it to one real replay shard. A crowd in another process stands for the actors: each
pushes chunks of one transition at its own pace and takes what the acknowledgement brings, without
acting on it. `training thread` is the time that a block becomes longer by; `process` is all CPU
time of this process, the publisher's thread and Ray's included, less that of the same loop without
publishing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from machine import finish, make_parser
from producers import RUN_ID, START_TIMEOUT_S, start_shards

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import SEED, first_snapshot, random_columns, resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.messages import encode_chunk, encode_snapshot
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner.remote_publisher import SnapshotPublisher
from qfleet.settings.plans import run_plans

BLOCK_S = 0.01
"""About a block of the default preset, and what stands for its updates: sleep."""
PUSHES_PER_S = 2.0
"""Of each actor."""


class Crowd:
    """So many actors as far as a shard can tell."""

    def __init__(self, spec_json: str, n_actors: int) -> None:
        spec = EnvironmentSpec.from_json(spec_json)
        self._columns = random_columns(np.random.default_rng(SEED), 1, spec)
        self._held = [(0, 0)] * n_actors
        self._seq = 0

    def ready(self) -> int:
        """How many it stands for."""
        return len(self._held)

    def push(self, shard: Any, seconds: float) -> int:
        """Push at the actors' pace for so long; how many snapshots came back."""
        ends_s, taken = time.monotonic() + seconds, 0
        pause_s = 1.0 / PUSHES_PER_S / len(self._held)
        due_s = time.monotonic()
        while time.monotonic() < ends_s:
            for slot in range(len(self._held)):
                chunk_id = ChunkId(RUN_ID, slot, 0, self._seq)
                chunk = TransitionChunk(chunk_id, self._columns, None, 1, 1)
                ref = shard.insert.remote(encode_chunk(chunk), self._held[slot])
                _, offer = ray.get(ref, timeout=START_TIMEOUT_S)
                taken += offer[2] is not None
                self._held[slot] = (offer[0], offer[1])
                due_s += pause_s
                time.sleep(max(0.0, due_s - time.monotonic()))
            self._seq += 1
        return taken


def measure(n_actors: int, shard: Any, spec: Any, snapshots: Any, seconds: float) -> list[Any]:
    """(training thread, process) in ms per published version."""
    crowd = ray.remote(num_cpus=0)(Crowd).remote(spec.to_json(), n_actors)
    answer(crowd.ready.remote(), "benchmark", "the crowd", START_TIMEOUT_S)
    publisher = SnapshotPublisher()
    publisher.set_shards([shard])
    publisher.start()
    pushing = crowd.push.remote(shard, 2 * seconds + 1.0)
    try:
        idle_s = loop(publisher, None, seconds)[1]
        thread_s, process_s, published = loop(publisher, snapshots, seconds)
    finally:
        publisher.stop()
    taken = answer(pushing, "benchmark", "the crowd to end")
    ray.kill(crowd, no_restart=True)
    return [1000 * thread_s / published, 1000 * (process_s - idle_s) / published, taken]


def loop(publisher: SnapshotPublisher, snapshots: Any, seconds: float) -> tuple[float, float, int]:
    """Blocks for so long: the training thread's seconds, the process's, and versions published."""
    ends_s, thread_s, published = time.monotonic() + seconds, 0.0, 0
    before_s = time.process_time()
    while time.monotonic() < ends_s:
        time.sleep(BLOCK_S)
        if snapshots is not None:
            snapshot = next(snapshots)
            started_s = time.perf_counter()
            publisher.publish([snapshot])
            thread_s += time.perf_counter() - started_s
            published += 1
    return thread_s, time.process_time() - before_s, published


def versions(snapshot: Any) -> Any:
    """The snapshot under ever newer versions."""
    while True:
        snapshot = replace(snapshot, version=snapshot.version + 1)
        yield snapshot


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["128-64", "2450-2450"])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repeat, twice")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found = []
    cluster = connect(run_plans(resolved_preset("cartpole", {"runtime": "ray"})[0]).cluster)
    try:
        for network in arguments.networks:
            sizes = [int(size) for size in network.split("-")]
            overrides: dict[str, object] = {"network.hidden_sizes": sizes}
            overrides |= {"replay.samples_per_insert": None}
            config, spec = resolved_preset("cartpole", overrides)
            first = first_snapshot(run_plans(config).learner, spec)
            for n_actors in arguments.actors:
                [shard] = start_shards(config, spec, 1)
                some = [
                    measure(n_actors, shard, spec, versions(first), arguments.seconds)
                    for _ in range(arguments.repeats)
                ]
                ray.kill(shard, no_restart=True)
                threads, processes, taken = zip(*some, strict=True)
                about = {"bytes": len(encode_snapshot(first)), "taken": sum(taken)}
                name = f"MLP {network}, {n_actors} actors"
                found.append(Measurement(f"{name}, training thread", "ms", threads, about))
                found.append(Measurement(f"{name}, process", "ms", processes, about))
    finally:
        disconnect(cluster)
    finish("publishing_cost", arguments, found)


if __name__ == "__main__":
    main()
