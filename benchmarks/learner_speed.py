"""Updates per second of the learner's block, eager beside compiled.

    PYTHONPATH=src python benchmarks/learner_speed.py [--repeats 15] [--json FILE]

Each workload is a preset. Both forms take the same batches of noise, in blocks of the preset's K,
on one thread; they take turns within each repeat, so that a busy machine slows both. `block` is the
block with copying in; `update_block` is the whole `Learner`: statistics, target syncs, publishing.
Packages that are missing are compiled first (about half a minute each). The learning twin: the
largest relative distance of parameters from eager after 1,000 updates. `matrix products alone` is
what no compilation around them can be faster than: every product of the traced block, one after the
other, into memory that is there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.common.envs import describe_environment
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.learner.backend import LearnerBackend
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.backends import cached_backend, eager_backend
from qfleet.learner.fast.build_block import prebuild
from qfleet.learner.fast.flat_block import random_batches
from qfleet.learner.fast.package_spec import PackageSpec, cpu_identity
from qfleet.learner.fast.traced_block import trace_block
from qfleet.learner.learner import Learner
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import Batches, LearnerState, UpdateRule
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import Config
from qfleet.settings.plans import run_plans

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
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            rates[name].append(updates_per_s(call, updates, repeat_s))
    return rates


def sample_of(batches: Batches) -> ReplaySample:
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
    plan = run_plans(config).learner
    spec = PackageSpec(plan, environment)
    prebuild(plan, environment)
    started_s = time.perf_counter()
    compiled = compiled_backend(plan, environment)
    load_s = time.perf_counter() - started_s
    rule, state, hyper = initial_block_inputs(plan, environment, "cpu")
    k = plan.updates_per_call
    sample = sample_of(random_batches(plan, environment, k))
    forms = {"eager": eager_backend(plan, environment, "cpu"), "compiled": compiled}

    def advance(backend: LearnerBackend) -> Callable[[], object]:
        def call() -> None:
            backend.run(sample)
            backend.accept()

        return call

    blocks = side_by_side({n: advance(one) for n, one in forms.items()}, k, repeats, repeat_s)
    products = matrix_products(spec, rule, state, hyper)
    alone = side_by_side({"products": products}, spec.n_updates, repeats, repeat_s)["products"]
    learners = {
        "eager": Learner(replace(plan, compile="off"), environment),
        "compiled": Learner(replace(plan, compile="required"), environment),
    }
    assert learners["compiled"].path == "compiled"

    def learn(learner: Learner) -> Callable[[], object]:
        def call() -> None:
            learner.update_block(sample)
            if learner.publish_due:
                learner.publish()
            learner.take_snapshots()

        return call

    whole = side_by_side({n: learn(one) for n, one in learners.items()}, k, repeats, repeat_s)
    return {
        "about": {
            "batch_size": config.learner.batch_size,
            "updates_per_block": k,
            "updates_per_package_call": spec.n_updates,
            "load_s": round(load_s, 4),
            "distance_after_1000_updates": f"{distance(plan, environment, sample):.1e}",
        },
        "block": blocks,
        "update_block": whole,
        "products": alone,
    }


def matrix_products(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> Callable[[], object]:
    """A call that makes every matrix product of one package call and nothing else."""
    graph, flat = trace_block(spec, rule, state, hyper)
    aten = torch.ops.aten
    wanted = {aten.mm.default: 0, aten.addmm.default: 1}
    operands: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Noting(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target in wanted:
                a, b = args[wanted[target] : wanted[target] + 2]
                operands.append((a, b, torch.empty(a.shape[0], b.shape[1])))
            return super().call_function(target, args, kwargs)

    Noting(graph).run(*flat)

    def call() -> None:
        for a, b, out in operands:
            torch.mm(a, b, out=out)

    return call


def measurements(preset: str, result: dict[str, Any]) -> list[Measurement]:
    """Both forms of a workload, alone and within `Learner.update_block`, and their ratios."""
    found = []
    for part in ("block", "update_block"):
        rates = result[part]
        for form, values in rates.items():
            about = result["about"] if (part, form) == ("block", "compiled") else {}
            found.append(
                Measurement(f"{preset}, {part}, {form}", "updates/s", tuple(values), about)
            )
        ratios = [c / e for c, e in zip(rates["compiled"], rates["eager"], strict=True)]
        found.append(Measurement(f"{preset}, {part}, compiled over eager", "×", tuple(ratios)))
    alone, eager = result["products"], result["block"]["eager"]
    found.append(Measurement(f"{preset}, matrix products alone", "updates/s", tuple(alone)))
    ratios = [a / e for a, e in zip(alone, eager, strict=True)]
    found.append(Measurement(f"{preset}, matrix products alone over eager", "×", tuple(ratios)))
    return found


def compiled_backend(plan: LearnerPlan, environment: EnvironmentSpec) -> LearnerBackend:
    backend = cached_backend(plan, environment)
    assert backend is not None
    return backend


def distance(plan: LearnerPlan, environment: EnvironmentSpec, sample: ReplaySample) -> float:
    """Largest difference of a parameter over the largest magnitude of its array."""
    eager, ours = eager_backend(plan, environment, "cpu"), compiled_backend(plan, environment)
    for _ in range(TWIN_UPDATES // sample.n_batches):
        for backend in (eager, ours):
            backend.run(sample)
            backend.accept()
            backend.sync_target()
    pairs = zip(eager.online().values(), ours.online().values(), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--repeat-s", type=float, default=0.4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Measurement] = []
    for name in WORKLOADS:
        found += measurements(name, measure(name, arguments.repeats, arguments.repeat_s))
    notes = [f"{name}: {what}" for name, what in WORKLOADS.items()]
    finish("learner_speed", arguments, found, [*notes, f"CPU: {cpu_identity()}, one thread"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
