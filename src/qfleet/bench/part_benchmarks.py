"""How fast each part of the system runs in this process: what `qfleet bench` measures.

Called by `commands/bench.py` and by the programs under benchmarks/. Every measurement takes a few
seconds and needs no Ray. The record that comes of it is in `bench_record.py`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from qfleet.bench.bench_record import Measurement, number
from qfleet.bench.frame_benchmarks import measure_frames
from qfleet.bench.timing import Effort, rates_per_s
from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    ChunkId,
    Columns,
    EnvironmentSpec,
    ParamsSnapshot,
    PriorityUpdate,
    ReplaySample,
    TransitionChunk,
)
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.plans import run_plans

LEARNER_PRESETS = ("cartpole", "tutorial-state")
ACTOR_SUB_ENVIRONMENTS = (16, 64, 256)
CHUNK_TRANSITIONS = 512
REPLAY_ROWS = 100_000
REPLAY_BATCH, BATCHES_PER_CALL = 64, 8
SEED = 1


# Inputs


def resolved_preset(
    name: str, overrides: dict[str, object] | None = None
) -> tuple[Config, EnvironmentSpec]:
    """A preset for the local runtime with every `auto` resolved, and its environment's spec."""
    from qfleet.common.envs import describe_environment
    from qfleet.settings.config_auto import resolve_config
    from qfleet.settings.config_loading import Config as LoadedConfig

    config = LoadedConfig.preset(name, {"runtime": "local", "seed": SEED, **(overrides or {})})
    spec = describe_environment(config.env)
    return resolve_config(config, spec, cpus=os.cpu_count() or 1, gpus=0), spec


def random_columns(rng: np.random.Generator, rows: int, spec: EnvironmentSpec) -> Columns:
    """Transitions of noise, `[rows, ...]`."""
    shape = (rows, *spec.observation_shape)
    return {
        OBSERVATION: rng.standard_normal(shape, dtype=np.float32),
        ACTION: rng.integers(0, spec.n_actions, rows, dtype=np.int32),
        N_STEP_RETURN: rng.random(rows, dtype=np.float32),
        BOOTSTRAP_DISCOUNT: np.full(rows, 0.97, dtype=np.float32),
        NEXT_OBSERVATION: rng.standard_normal(shape, dtype=np.float32),
    }


def random_sample(
    rng: np.random.Generator, n_batches: int, batch_size: int, spec: EnvironmentSpec
) -> ReplaySample:
    """K batches of noise with weights of 1."""
    columns = {
        name: array.reshape(n_batches, batch_size, *array.shape[1:])
        for name, array in random_columns(rng, n_batches * batch_size, spec).items()
    }
    shape = (n_batches, batch_size)
    return ReplaySample(
        columns,
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int32),
        np.ones(shape, dtype=np.float32),
    )


def first_snapshot(plan: LearnerPlan, spec: EnvironmentSpec) -> ParamsSnapshot:
    """What a learner that has not learned yet sends; it serves as the target too."""
    from qfleet.learner.learner import Learner

    return Learner(plan, spec, "cpu").current_snapshots()[0]


def measure_learner(effort: Effort) -> list[Measurement]:
    """Updates per second without sampling: eager, and compiled where a package is cached."""
    from qfleet.common.threads import limit_threads
    from qfleet.learner.learner import Learner

    found = []
    for preset in LEARNER_PRESETS:
        config, spec = resolved_preset(preset)
        plan = run_plans(config).learner
        k, batch, threads = plan.updates_per_call, plan.batch_size, limit_threads(plan.num_cpus)
        sample = random_sample(np.random.default_rng(SEED), k, batch, spec)
        detail = {"batch": batch, "updates per block": k, "threads": threads}
        eager = Learner(replace(plan, compile="off"), spec, "cpu")
        fast = Learner(replace(plan, compile="auto"), spec, "cpu")
        for learner in {eager.path: eager, fast.path: fast}.values():
            rates = tuple(rates_per_s(_updates(learner, sample), k, effort))
            name = f"learner, {preset}, {learner.path}"
            found += [Measurement(name, "updates/s", rates, detail)]
    return found


def _updates(learner: Any, sample: ReplaySample) -> Callable[[], None]:
    def call() -> None:
        learner.update_block(sample)
        learner.take_snapshots()

    return call


def measure_actor(effort: Effort) -> list[Measurement]:
    """CartPole env steps per second on one core: network, environment, n-step and encoding."""
    from qfleet.common.threads import limit_threads

    limit_threads(1)
    return [measure_actor_of(n, effort) for n in ACTOR_SUB_ENVIRONMENTS]


def measure_actor_of(
    n_envs: int, effort: Effort, overrides: dict[str, object] | None = None, note: str = ""
) -> Measurement:
    """One actor of `n_envs` sub-environments, with the chunks that it would push."""
    from qfleet.actors.build import build_actor
    from qfleet.common.messages import encode_chunk

    wanted = {"actors.count": 1, "actors.envs_per_actor": n_envs, **(overrides or {})}
    config, spec = resolved_preset("cartpole", wanted)
    plans = run_plans(config)
    actor = build_actor(plans.actor, spec, run_id="bench", slot=0, incarnation=0)
    actor.set_params(first_snapshot(plans.learner, spec))

    def call() -> None:
        actor.step()
        if actor.pending_rows >= CHUNK_TRANSITIONS:
            chunk = actor.take_chunk()
            assert chunk is not None, "it has pending rows"
            encode_chunk(chunk)

    try:
        for _ in range(100):  # past the first steps, where no episode ends
            call()
        rates = rates_per_s(call, n_envs, effort)
    finally:
        actor.close()
    name = f"actor, CartPole, {n_envs} sub-environments{note}"
    return Measurement(name, "env steps/s", tuple(rates), {"chunk": CHUNK_TRANSITIONS})


def measure_replay(effort: Effort) -> list[Measurement]:
    """Transitions per second of one shard: inserts, uniform draws, the prioritized cycle."""
    found = []
    for sampling in ("uniform", "prioritized", "rank"):
        shard, spec = _full_shard(sampling)
        rng = np.random.default_rng(SEED)
        columns = random_columns(rng, CHUNK_TRANSITIONS, spec)
        priorities = None if sampling == "uniform" else rng.random(CHUNK_TRANSITIONS)
        insert = _insert(shard, columns, priorities, first_seq=1)
        rates = rates_per_s(insert, CHUNK_TRANSITIONS, effort)
        detail = {"chunk": CHUNK_TRANSITIONS, "rows": REPLAY_ROWS}
        unit = "transitions/s"
        found.append(Measurement(f"replay, insert, {sampling}", unit, tuple(rates), detail))

        draws = BATCHES_PER_CALL * REPLAY_BATCH
        cycle = _cycle(shard, draws, rng.random(draws), sampling != "uniform")
        rates = rates_per_s(cycle, draws, effort)
        detail = {"batch": REPLAY_BATCH, "batches per call": BATCHES_PER_CALL, "rows": REPLAY_ROWS}
        name = "replay, sample, uniform"
        if sampling != "uniform":
            name = f"replay, sample + weights + update, {sampling}"
        found.append(Measurement(name, unit, tuple(rates), detail))
    return found


def _full_shard(sampling: str) -> tuple[Any, EnvironmentSpec]:
    from qfleet.replay_server.build import build_shard

    overrides: dict[str, object] = {
        "replay.capacity": REPLAY_ROWS,
        "replay.sampling": sampling,
        "replay.samples_per_insert": None,
    }
    config, spec = resolved_preset("cartpole", overrides)
    shard = build_shard(run_plans(config).replay, spec, run_id="bench", shard=0)
    rng = np.random.default_rng(SEED)
    priorities = None if sampling == "uniform" else rng.random(REPLAY_ROWS)
    _insert(shard, random_columns(rng, REPLAY_ROWS, spec), priorities, first_seq=0)()
    return shard, spec


def _insert(
    shard: Any, columns: Columns, priorities: Array | None, first_seq: int
) -> Callable[[], None]:
    rows, seq = len(columns[ACTION]), first_seq

    def call() -> None:
        nonlocal seq
        chunk = TransitionChunk(ChunkId("bench", 0, 0, seq), columns, priorities, 1, rows)
        seq += 1
        ack = shard.insert(chunk, 0.0)
        assert ack.status == "accepted", ack.status

    return call


def _cycle(shard: Any, draws: int, errors: Array, prioritized: bool) -> Callable[[], None]:
    from qfleet.common.prioritization import importance_weights

    def uniform() -> None:
        shard.sample(draws, 1.0)

    def cycle() -> None:
        sample = shard.sample(draws, 1.0)
        probabilities = sample.probabilities.reshape(BATCHES_PER_CALL, -1)
        importance_weights(probabilities, sample.stats.size, 0.4)
        shard.update_priorities(PriorityUpdate(sample.item_keys, errors))

    return cycle if prioritized else uniform


def measure_snapshot(effort: Effort) -> list[Measurement]:
    """Milliseconds from the learner's tensors to a network that can act, without the transport."""
    from qfleet.common.messages import decode_snapshot, encode_snapshot
    from qfleet.common.q_functions import build_q_function
    from qfleet.learner.learner import Learner

    found = []
    for preset in LEARNER_PRESETS:
        config, spec = resolved_preset(preset)
        learner = Learner(run_plans(config).learner, spec, "cpu")
        data = encode_snapshot(learner.current_snapshots()[0])
        arrays = decode_snapshot(data).arrays

        def publish(learner: Learner = learner) -> bytes:
            learner.publish()
            return encode_snapshot(learner.take_snapshots()[-1])

        steps: dict[str, Callable[[], object]] = {
            "publish and encode": publish,
            "decode": partial(decode_snapshot, data),
            "build": partial(build_q_function, config.network, spec, arrays),
        }
        parts = {step: _milliseconds(call, effort) for step, call in steps.items()}
        total = tuple(map(sum, zip(*parts.values(), strict=True)))
        detail = {step: f"{statistics.median(values):.3f}" for step, values in parts.items()}
        name = f"snapshot, {preset}, encode + decode + build"
        found.append(Measurement(name, "ms", total, {**detail, "bytes": len(data)}))
    return found


def _milliseconds(call: Callable[[], object], effort: Effort) -> list[float]:
    third = Effort(effort.repeats, effort.repeat_s / 3)
    return [1000.0 / rate for rate in rates_per_s(call, 1, third)]


PARTS: dict[str, Callable[[Effort], list[Measurement]]] = {
    "learner": measure_learner,
    "actor": measure_actor,
    "replay": measure_replay,
    "snapshot": measure_snapshot,
    "frames": measure_frames,
}
"""Everything that can be measured, by the name that `qfleet bench` takes."""


def limiting_role(rows: Sequence[dict[str, Any]], config: Config) -> str:
    """Which part would limit the default preset with one actor, in one sentence.

    Compares env steps: what an update uses up at the preset's ratio, with what an actor plays.
    """
    medians = {row["name"]: row["median"] for row in rows}
    learner = f"learner, {config.preset_name},"
    updates = medians.get(f"{learner} compiled", medians.get(f"{learner} eager", 0.0))
    played = medians[f"actor, CartPole, {config.actors.envs_per_actor} sub-environments"]
    per_insert = config.replay.samples_per_insert or 1.0
    used = updates * config.learner.batch_size / per_insert
    slower = "the learner" if used < played else "acting"
    return (
        f"{config.preset_name}: {number(updates)} updates/s use {number(used)} env steps/s, one "
        f"actor plays {number(played)} on a core of its own: {slower} limits"
    )
