"""Replay shards as they are in a run, synthetic producers of chunks, and a consumer of samples.

Used by `replay_saturation.py`, `checkpoint_cost.py` and others. Nothing here
imports torch, so that the producers' processes start fast and stay small.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import ray

from qfleet.actors.plan import MAX_UNACKNOWLEDGED_CHUNKS
from qfleet.bench.part_benchmarks import SEED, random_columns
from qfleet.cluster.answers import answer
from qfleet.common.messages import encode_chunk
from qfleet.common.plan_json import plan_to_json
from qfleet.common.sample_message import decode_shard_sample
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.replay_server.remote import remote_replay_class
from qfleet.settings.config import Config
from qfleet.settings.plans import run_plans

RUN_ID = "bench"
START_TIMEOUT_S = 120.0
TIMEOUT_S = 60.0


class Producer:
    """A synthetic actor: pushes chunks of noise to one shard, with as many in flight as asked."""

    def __init__(self, spec_json: str, slot: int, rows: int) -> None:
        spec = EnvironmentSpec.from_json(spec_json)
        self._slot, self._rows, self._seq = slot, rows, 0
        self._columns = random_columns(np.random.default_rng((SEED, slot)), rows, spec)

    def ready(self) -> int:
        """Its slot, once it can answer."""
        return self._slot

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    def push(self, shard: Any, seconds: float, in_flight: int = 2) -> dict[str, Any]:
        """As fast as answers come, as an actor does: how many were accepted in which time."""
        started_s = time.monotonic()
        waiting: collections.deque[Any] = collections.deque()
        accepted = 0
        while time.monotonic() - started_s < seconds:
            waiting.append(shard.insert.remote(self._encode()))
            if len(waiting) >= in_flight:
                accepted += self._acknowledge(waiting.popleft())
        elapsed_s = time.monotonic() - started_s
        in_time = accepted
        for ref in waiting:
            accepted += self._acknowledge(ref)
        return {"transitions": accepted, "in_time": in_time, "seconds": elapsed_s}

    def fill(self, shard: Any, transitions: int) -> int:
        """Push until so many were accepted; how many it became."""
        accepted = 0
        while accepted < transitions:
            # Past the rate limiter: nothing draws yet.
            accepted += self._acknowledge(shard.insert.remote(self._encode(), wait=False))
        return accepted

    def pace(self, shard: Any, seconds: float, period_s: float) -> list[tuple[float, float]]:
        """One chunk per period: (time when each was due, seconds from there to its answer).

        At most two are in flight, as of an actor; a shard that stalls is seen by every chunk that
        fell due meanwhile.
        """
        end_s = time.monotonic() + seconds
        due_s = time.monotonic()
        waiting: collections.deque[tuple[Any, float]] = collections.deque()
        events: list[tuple[float, float]] = []
        while due_s < end_s or waiting:
            until_due_s = due_s - time.monotonic()
            has_room = due_s < end_s and len(waiting) < MAX_UNACKNOWLEDGED_CHUNKS
            if has_room and until_due_s <= 0:
                waiting.append((shard.insert.remote(self._encode()), due_s))
                due_s += period_s
            elif not waiting:
                time.sleep(until_due_s)
            else:
                ref, was_due_s = waiting[0]
                timeout_s = max(0.0, until_due_s) if has_room else TIMEOUT_S
                if ray.wait([ref], timeout=timeout_s)[0]:
                    events.append((was_due_s, time.monotonic() - was_due_s))
                    self._acknowledge(waiting.popleft()[0])
        return events

    def _encode(self) -> bytes:
        chunk_id = ChunkId(RUN_ID, self._slot, 0, self._seq)
        self._seq += 1
        return encode_chunk(TransitionChunk(chunk_id, self._columns, None, 1, self._rows))

    def _acknowledge(self, ref: Any) -> int:
        status = ray.get(ref, timeout=TIMEOUT_S)[0][0]
        if status != "accepted":
            raise RuntimeError(f"a chunk was {status}")
        return self._rows


class Consumer:
    """A learner that only asks and decodes."""

    def pid(self) -> int:
        """This process's id, once it can answer."""
        return os.getpid()

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
        for data in ray.get(refs, timeout=TIMEOUT_S):
            sample = decode_shard_sample(data)
            received[sample.shard] += len(sample.item_keys)


def start_shards(config: Config, spec: EnvironmentSpec, n_shards: int) -> list[Any]:
    """The replay shards, once they can answer."""
    plan = run_plans(config).replay
    arguments = (plan_to_json(plan), spec.to_json(), RUN_ID)
    make = remote_replay_class().options(num_cpus=plan.num_cpus)
    shards = [make.remote(*arguments, index) for index in range(n_shards)]
    for shard in shards:
        answer(shard.ready.remote(), "benchmark", "a replay shard to start", START_TIMEOUT_S)
    return shards


def start_producers(spec: EnvironmentSpec, rows_of_slots: list[int]) -> list[Any]:
    """A synthetic producer per slot, once they can answer; they take no CPU reservation."""
    make = ray.remote(num_cpus=0, max_restarts=0)(Producer)
    producers = [make.remote(spec.to_json(), slot, rows) for slot, rows in enumerate(rows_of_slots)]
    for producer in producers:
        answer(producer.ready.remote(), "benchmark", "a producer to start", START_TIMEOUT_S)
    return producers


def processes_of(pid_refs: Iterator[Any]) -> list[psutil.Process]:
    """The processes behind references to their ids."""
    pids = [answer(ref, "benchmark", "a process to start", START_TIMEOUT_S) for ref in pid_refs]
    return [psutil.Process(pid) for pid in pids]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds of all of them; one that has ended meanwhile counts nothing."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
