"""Updates per second of the learner's block, eager beside compiled; prints one JSON object.

    PYTHONPATH=src python benchmarks/learner_speed.py [--repeats 15] [--output FILE]

Each workload is a preset. Both forms take the same batches of noise, in blocks of the preset's K,
on one thread; they take turns within each repeat, so that a busy machine slows both. `block` is the
block alone; `learner` is `Learner.update_block` with copying in, statistics, target syncs and
publishing. Packages that are missing are compiled first (about half a minute each). The learning
twin: the largest relative distance of parameters and errors from eager after 1,000 updates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qfleet.common.config_auto import resolve_config
from qfleet.common.envs import describe_environment
from qfleet.config_loading import Config
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.build_block import prebuild
from qfleet.learner.compiled import (
    CompiledBlock,
    PackageSpec,
    cpu_identity,
    load_flat_block,
    random_batches,
)
from qfleet.learner.learner import Learner
from qfleet.learner.update import Batches, LearnerState, copy_tensors, run_block

WORKLOADS = {
    "tutorial-state": "the course's MLP with BatchNorm, batch 32, MSE, no double Q",
    "cartpole": "the default preset: no normalization, batch 64, double Q, Huber, clipping",
}
TWIN_UPDATES = 1_000


def updates_per_s(call: Callable[[], object], updates: int, repeat_s: float) -> float:
    calls, start_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - start_s) < repeat_s:
        call()
        calls += 1
    return calls * updates / elapsed_s


def side_by_side(
    calls: dict[str, Callable[[], object]], updates: int, repeats: int, repeat_s: float
) -> dict[str, dict[str, float]]:
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            rates[name].append(updates_per_s(call, updates, repeat_s))
    return {
        name: {
            "updates_per_s": round(statistics.median(values)),
            "min": round(min(values)),
            "max": round(max(values)),
        }
        for name, values in rates.items()
    }


def sample_of(batches: Batches) -> Any:
    from qfleet.common.types import ReplaySample

    columns = {
        "observation": batches.observations.numpy(),
        "action": batches.actions.numpy().astype(np.int32),
        "n_step_return": batches.n_step_returns.numpy(),
        "bootstrap_discount": batches.bootstrap_discounts.numpy(),
        "next_observation": batches.next_observations.numpy(),
    }
    keys = np.zeros(batches.actions.shape, np.int64)
    return ReplaySample(columns, keys, keys.astype(np.int32), batches.is_weights.numpy())


def measure(preset: str, repeats: int, repeat_s: float) -> dict[str, Any]:
    config = Config.preset(preset, {"runtime": "local", "learner.device": "cpu"})
    environment = describe_environment(config.env)
    config = resolve_config(config, environment, cpus=os.cpu_count() or 1, gpus=0)
    spec = PackageSpec(config, environment)
    started_s = time.perf_counter()
    path = prebuild(config, environment)
    build_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    compiled = CompiledBlock(load_flat_block(path), spec)
    load_s = time.perf_counter() - started_s
    rule, state, hyper = initial_block_inputs(config, environment, torch.device("cpu"))
    k = config.learner.updates_per_call
    batches = random_batches(spec, k)
    eager_state = state._replace(buffers=copy_tensors(state.buffers))
    blocks = side_by_side(
        {
            "eager": lambda: run_block(rule, eager_state, batches, hyper),
            "compiled": lambda: compiled(state, batches, hyper),
        },
        k,
        repeats,
        repeat_s,
    )
    learners = {
        "eager": Learner(_with_compile(config, "off"), environment),
        "compiled": Learner(_with_compile(config, "required"), environment),
    }
    assert learners["compiled"].path == "compiled"
    sample = sample_of(batches)

    def learn(learner: Learner) -> Callable[[], object]:
        def call() -> None:
            learner.update_block(sample)
            if learner.publish_due:
                learner.publish()
            learner.take_snapshots()

        return call

    whole = side_by_side({n: learn(one) for n, one in learners.items()}, k, repeats, repeat_s)
    return {
        "what": WORKLOADS[preset],
        "batch_size": config.learner.batch_size,
        "updates_per_block": k,
        "updates_per_package_call": spec.n_updates,
        "build_s": round(build_s, 1),
        "load_s": round(load_s, 4),
        "block": {**blocks, "ratio": _ratio(blocks)},
        "learner": {**whole, "ratio": _ratio(whole)},
        "relative_distance_after_1000_updates": distance(spec, compiled, k),
    }


def _with_compile(config: Any, mode: str) -> Any:
    learner = config.learner.model_copy(update={"compile": mode})
    return config.model_copy(update={"learner": learner})


def _ratio(rates: dict[str, dict[str, float]]) -> float:
    return round(rates["compiled"]["updates_per_s"] / rates["eager"]["updates_per_s"], 2)


def distance(spec: PackageSpec, compiled: CompiledBlock, k: int) -> float:
    inputs = initial_block_inputs(spec.config, spec.environment, torch.device("cpu"))
    rule, ours, hyper = inputs
    eager = ours._replace(buffers=copy_tensors(ours.buffers))
    batches = random_batches(spec, k)
    for _ in range(TWIN_UPDATES // k):
        eager = _synced(run_block(rule, eager, batches, hyper).state)
        ours = _synced(compiled(ours, batches, hyper).state)
    pairs = zip(eager.parameters.values(), ours.parameters.values(), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def _synced(state: LearnerState) -> LearnerState:
    return state._replace(
        target_parameters=copy_tensors(state.parameters),
        target_buffers=copy_tensors(state.buffers),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--repeat-s", type=float, default=0.4)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    results = {name: measure(name, options.repeats, options.repeat_s) for name in WORKLOADS}
    report = {
        "machine": {"cpu": cpu_identity(), "cores": os.cpu_count(), "system": platform.platform()},
        "load_average_before": round(load_before, 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
        "threads": 1,
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
