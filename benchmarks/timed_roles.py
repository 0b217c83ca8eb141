"""The shells of learner and actor with a clock beside them, for latencies between processes.

Used by `snapshot_latency.py` and `checkpoint_cost.py`. The roles do exactly what they do in a run;
each only notes when something happened, by the system's monotonic clock, which all processes of one
Linux host share.
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from qfleet.actors.remote import ActorShell
from qfleet.common.config import Config
from qfleet.common.messages import encode_chunk
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner.remote import LearnerShell
from qfleet.part_benchmarks import SEED, random_columns
from qfleet.ray_cluster import SHARD_CPUS
from qfleet.ray_roles import answer
from qfleet.replay_server.remote import remote_replay_class

RUN_ID = "bench"
START_TIMEOUT_S = 120.0
TIMEOUT_S = 60.0


class TimedLearnerShell(LearnerShell):
    """Notes (learner step, time) at the end of every block."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._blocks: list[tuple[int, float]] = []
        core, update = self._core, self._core.update_block

        def timed(sample: Any) -> Any:
            errors = update(sample)
            self._blocks.append((core.learner_steps, time.monotonic()))
            return errors

        core.update_block = timed

    @ray.method(concurrency_group="control")
    def blocks(self) -> list[tuple[int, float]]:
        """All notes so far."""
        return list(self._blocks)


class TimedActorShell(ActorShell):
    """Notes (learner step of its parameters, time) after the first step with each version."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._first_actions: list[tuple[int, float]] = []
        core, step = self._core, self._core.step
        last_version = None

        def timed() -> None:
            nonlocal last_version
            step()
            if core.params_version != last_version:
                last_version = core.params_version
                self._first_actions.append((core.params_learner_step, time.monotonic()))

        core.step = timed

    @ray.method(concurrency_group="control")
    def first_actions(self) -> list[tuple[int, float]]:
        """All notes so far."""
        return list(self._first_actions)


class Producer:
    """A synthetic actor: pushes chunks of noise to one shard, with as many in flight as asked."""

    def __init__(self, spec_json: str, slot: int, rows: int) -> None:
        spec = EnvironmentSpec.from_json(spec_json)
        self._slot, self._rows, self._seq = slot, rows, 0
        self._columns = random_columns(np.random.default_rng((SEED, slot)), rows, spec)

    def ready(self) -> int:
        """Its slot, once it can answer."""
        return self._slot

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
            accepted += self._acknowledge(shard.insert.remote(self._encode()))
        return accepted

    def pace(self, shard: Any, seconds: float, period_s: float) -> list[tuple[float, float]]:
        """One chunk per period, answered or not: (time of each push, seconds to its answer).

        Pushing does not wait for answers, so a shard that stalls is seen by every push it delays.
        """
        end_s = time.monotonic() + seconds
        next_push_s = time.monotonic()
        waiting: collections.deque[tuple[Any, float]] = collections.deque()
        events: list[tuple[float, float]] = []
        while (now_s := time.monotonic()) < end_s or waiting:
            if now_s < end_s and now_s >= next_push_s:
                next_push_s += period_s
                data, pushed_at_s = self._encode(), time.monotonic()
                waiting.append((shard.insert.remote(data), pushed_at_s))
                continue
            until_push_s = max(0.0, next_push_s - now_s) if now_s < end_s else TIMEOUT_S
            if not waiting:
                time.sleep(until_push_s)
                continue
            ref, pushed_at_s = waiting[0]
            if ray.wait([ref], timeout=until_push_s)[0]:
                events.append((pushed_at_s, time.monotonic() - pushed_at_s))
                self._acknowledge(waiting.popleft()[0])
        return events

    def _encode(self) -> bytes:
        chunk_id = ChunkId(RUN_ID, self._slot, 0, self._seq)
        self._seq += 1
        return encode_chunk(TransitionChunk(chunk_id, self._columns, None, 1, self._rows))

    def _acknowledge(self, ref: Any) -> int:
        status = ray.get(ref, timeout=TIMEOUT_S)[0]
        if status != "accepted":
            raise RuntimeError(f"a chunk was {status}")
        return self._rows


@dataclass
class TimedRoles:
    """Handles of the roles that were started, under the names that `Roles` has."""

    learner: Any
    shards: list[Any]
    actors: dict[int, Any]

    def end(self) -> None:
        """End every role."""
        for handle in [*self.actors.values(), self.learner, *self.shards]:
            ray.kill(handle, no_restart=True)


def start_shards(config: Config, spec: EnvironmentSpec, n_shards: int) -> list[Any]:
    """The replay shards, once they can answer."""
    arguments = (config.model_dump_json(by_alias=True), spec.to_json(), RUN_ID)
    shards = [
        remote_replay_class().options(num_cpus=SHARD_CPUS).remote(*arguments, index, SHARD_CPUS)
        for index in range(n_shards)
    ]
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


def start_roles(config: Config, spec: EnvironmentSpec, n_actors: int) -> TimedRoles:
    """Shards, a timed learner and timed actors, connected and ready to `run`."""
    options: dict[str, Any] = {"concurrency_groups": {"control": 1}, "max_restarts": 0}
    texts = (config.model_dump_json(by_alias=True), spec.to_json(), [])
    learner_class = ray.remote(**options)(TimedLearnerShell)
    learner = learner_class.options(num_cpus=config.learner.num_cpus).remote(
        *texts, "cpu", float(config.learner.num_cpus)
    )
    actor_class = ray.remote(**options)(TimedActorShell)
    actor_cpus = config.actors.num_cpus
    actors = {
        slot: actor_class.options(num_cpus=actor_cpus).remote(*texts, RUN_ID, slot, 0, actor_cpus)
        for slot in range(n_actors)
    }
    shards = start_shards(config, spec, config.replay.shards)
    answer(learner.ready.remote(), "benchmark", "the learner to start", START_TIMEOUT_S)
    for actor in actors.values():
        answer(actor.ping.remote(), "benchmark", "an actor to start", START_TIMEOUT_S)
    answer(learner.set_shards.remote(shards), "benchmark", "the learner")
    answer(learner.set_actors.remote(actors), "benchmark", "the learner")
    return TimedRoles(learner, shards, actors)
