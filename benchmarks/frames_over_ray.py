"""Batches of stacked frames that reach an asynchronous learner over Ray: whole stacks, or places.

    python benchmarks/frames_over_ray.py [--json FILE]

One shard with Atari's frames, 4 × 84 × 84 bytes a stack, filled; one producer of noise that the
limiter holds to 8 draws per insert; and a learner's feed that trains on nothing: what is left is
what the way costs. `whole`: the stacks come and are copied into the buffer that a transfer to a GPU
starts from. `kept`: places come, with the frames that the learner does not have; those are put into
its memory (this host's here, a GPU's in a run, which also gathers the stacks). In turn, so that
drift hits both alike: batches per second, and the CPU time of shard and feed.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from machine import finish, make_parser
from producers import RUN_ID, START_TIMEOUT_S, cpu_s, processes_of, start_shards

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import SEED
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.messages import encode_chunk
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.plan_json import plan_from_json, plan_to_json
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

DEPTH, SIDE = 4, 84
FORMS = ("whole", "kept")
SPEC = EnvironmentSpec("E", (DEPTH, SIDE, SIDE), "|u1", 4, None, None, frame_stack=DEPTH)
BLOCKS_AT_ONCE = 4


class FrameProducer:
    """A synthetic actor in an episode without end, one new frame a row."""

    def __init__(self, rows: int) -> None:
        self._rows, self._seq, self._is_over = rows, 0, False
        shape = (rows, SIDE, SIDE)
        self._frames = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)

    def fill(self, shard: Any, transitions: int) -> None:
        """Past the limiter, for nothing draws yet."""
        for _ in range(-(-transitions // self._rows)):
            ray.get(shard.insert.remote(self._chunk(), wait=False), timeout=START_TIMEOUT_S)

    def push(self, shard: Any) -> None:
        """Until `end`, each chunk after the answer to the one before."""
        while not self._is_over:
            ray.get(shard.insert.remote(self._chunk()), timeout=START_TIMEOUT_S)

    def end(self) -> None:
        """Let `push` return."""
        self._is_over = True

    def _chunk(self) -> bytes:
        rows, first = self._rows, self._seq * self._rows
        newest = np.arange(first, first + rows)[:, None] - np.arange(DEPTH)[::-1]
        columns = {
            "observation": np.maximum(newest - 1, 0),
            "action": np.zeros(rows, np.int32),
            "n_step_return": np.zeros(rows, np.float32),
            "bootstrap_discount": np.ones(rows, np.float32),
            "next_observation": np.maximum(newest, 0),
        }
        run = FrameRun(first, max(0, first + rows - DEPTH - 1), self._frames)
        chunk_id = ChunkId(RUN_ID, 0, 0, self._seq)
        self._seq += 1
        return encode_chunk(TransitionChunk(chunk_id, columns, None, 0, rows, (), run))


class Reader:
    """The learner's feed, and the host's part of what follows it."""

    def __init__(self, learner_json: str) -> None:
        self._plan = plan_from_json(LearnerPlan, learner_json)
        self._feeds: dict[str, Any] = {}

    def pid(self) -> int:
        """This process's id, once it can answer."""
        return os.getpid()

    def read(self, form: str, shard: Any, seconds: float) -> dict[str, Any]:
        """Batches, seconds and frames that came, after a tenth of the time unmeasured."""
        stage, blocks = self._feed(form, shard)
        batches, frames = 0, 0
        measured_from_s = time.monotonic() + seconds / 10
        began_s, end_s = 0.0, measured_from_s + seconds
        for sample in blocks:
            now_s = time.monotonic()
            if not began_s and now_s > measured_from_s:
                began_s, batches, frames = now_s, 0, 0
            stage(sample)
            batches += sample.n_batches
            news = sample.new_frames
            named = sum(len(one.places) for one in news.values()) if news else 0
            frames += named if news is not None else sample.item_keys.size * 2 * DEPTH
            if began_s and now_s > end_s:
                return {"batches": batches, "seconds": now_s - began_s, "frames": frames}
        raise RuntimeError("the feed ended")

    def _feed(self, form: str, shard: Any) -> Any:
        """How a sample is taken and where samples come from; a form's frames stay for its turns."""
        if form not in self._feeds:
            import torch

            from qfleet.common.stage_clock import StageClock
            from qfleet.learner.batch_stager import BatchStager
            from qfleet.learner.block_runner import BlockPlanner
            from qfleet.learner.device_frames import DeviceFrames
            from qfleet.learner.remote_feed import ReplayFeed

            by_place, cpu = form == "kept", torch.device("cpu")
            stage = DeviceFrames(cpu).located if by_place else BatchStager(cpu).stage
            planner, stop = BlockPlanner(self._plan), threading.Event()
            most = self._plan.max_blocks_per_request
            feed = ReplayFeed(SPEC, planner, most, stop, StageClock(), by_place=by_place)
            feed.set_shards([shard])
            learner = SimpleNamespace(learner_steps=0, fleet_env_steps=0, params_version=0)
            self._feeds[form] = stage, feed.blocks(learner)
        return self._feeds[form]


def configuration(arguments: Any) -> Config:
    wanted = Config.model_validate(
        {
            "env": {"observation": "pixels", "frame_stack": DEPTH, "frame_size": SIDE},
            "network": {"kind": "nature", "hidden_sizes": [512]},
            "replay": {
                "capacity": arguments.capacity,
                "sampling": "uniform",
                "samples_per_insert": 8,
                "min_size_to_sample": 1000,
            },
            "learner": {
                "batch_size": 32,
                "updates_per_call": arguments.updates_per_call,
                "max_blocks_per_request": BLOCKS_AT_ONCE,
            },
            "actors": {"count": 1},
        }
    )
    return resolve_config(wanted, SPEC, cpus=2, gpus=0)


def measure(arguments: Any) -> list[Measurement]:
    config = configuration(arguments)
    [shard] = start_shards(config, SPEC, 1)
    options = {"num_cpus": 0, "max_restarts": 0}
    producer = ray.remote(**options, max_concurrency=2)(FrameProducer).remote(arguments.chunk)
    reader = ray.remote(**options)(Reader).remote(plan_to_json(run_plans(config).learner))
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    costs: dict[str, list[float]] = {form: [] for form in FORMS}
    sent: dict[str, list[float]] = {form: [] for form in FORMS}
    try:
        processes = processes_of(iter([shard.ready.remote(), reader.pid.remote()]))
        filled = producer.fill.remote(shard, arguments.capacity)
        answer(filled, "benchmark", "the memory to be filled", 300)
        pushing = producer.push.remote(shard)
        for number, form in itertools.product(range(arguments.repeats + 1), FORMS):
            before_s, asked_s = cpu_s(processes), time.monotonic()
            read = answer(
                reader.read.remote(form, shard, arguments.seconds), "benchmark", "the feed", 120
            )
            busy = (cpu_s(processes) - before_s) / (time.monotonic() - asked_s)
            if number:  # in the first round modules are imported and all frames are new
                rates[form].append(read["batches"] / read["seconds"])
                costs[form].append(1000 * busy / rates[form][-1])
                sent[form].append(read["frames"] / read["batches"])
        answer(producer.end.remote(), "benchmark", "the producer")
        answer(shard.open_gate.remote(), "benchmark", "the shard")
        answer(pushing, "benchmark", "the producer to end")
    finally:
        for handle in (shard, producer, reader):
            ray.kill(handle, no_restart=True)
    about = {"batch": 32, "updates_per_call": arguments.updates_per_call}
    found = []
    for form in FORMS:
        frames = {"frames_a_batch": round(float(np.median(sent[form])), 2)}
        found.append(Measurement(form, "batches/s", tuple(rates[form]), {**about, **frames}))
        of_cpu = tuple(costs[form])
        found.append(Measurement(f"{form}, CPU of shard and feed", "ms/batch", of_cpu, about))
    ratios = tuple(kept / whole for whole, kept in zip(*rates.values(), strict=True))
    return [*found, Measurement("kept / whole", "", ratios, about)]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--capacity", type=int, default=20_000, help="transitions of the shard")
    parser.add_argument("--updates-per-call", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=32, help="transitions of a producer's chunk")
    arguments = parser.parse_args()
    cluster = connect(run_plans(configuration(arguments)).cluster)
    try:
        found = measure(arguments)
    finally:
        disconnect(cluster)
    finish("frames_over_ray", arguments, found)


if __name__ == "__main__":
    main()
