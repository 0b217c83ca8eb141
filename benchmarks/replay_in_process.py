"""How fast one replay shard samples in its own process, CartPole rows; prints one JSON object.

    PYTHONPATH=src python benchmarks/replay_in_process.py [--peer-python PATH]

One call asks for 8 batches. `uniform`: sample. `prioritized`: sample, importance-sampling weights
and priority update. With `--peer-python`, an interpreter that has cpprb (and NumPy) runs the same
measurement on cpprb: once with a call per batch and once with one call for all 8.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

BATCHES_PER_CALL = 8
MEASUREMENTS = (
    ("uniform", 32),
    ("uniform", 512),
    ("prioritized", 32),
    ("prioritized", 512),
    ("prioritized", 4096),
)
FILL_CHUNK = 10_000
PRIORITY_EXPONENT, IMPORTANCE_EXPONENT, SEED = 0.6, 0.4, 0


def samples_per_s(call: Callable[[], None], samples: int, repeats: int, repeat_s: float) -> float:
    """Median over `repeats` runs of `repeat_s` seconds each."""
    call()
    rates = []
    for _ in range(repeats):
        calls, start_s = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - start_s) < repeat_s:
            call()
            calls += 1
        rates.append(calls * samples / elapsed_s)
    return statistics.median(rates)


def random_columns(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """CartPole transitions of noise."""
    return {
        "observation": rng.random((n, 4), dtype=np.float32),
        "action": rng.integers(0, 2, n, dtype=np.int32),
        "n_step_return": np.ones(n, np.float32),
        "bootstrap_discount": np.full(n, 0.99, np.float32),
        "next_observation": rng.random((n, 4), dtype=np.float32),
    }


def make_qfleet_call(sampling: str, batch: int, rows: int) -> Callable[[], None]:
    from qfleet.common.prioritization import importance_weights
    from qfleet.common.types import ChunkId, EnvironmentSpec, PriorityUpdate, TransitionChunk
    from qfleet.replay_server.build import build_shard
    from qfleet.replay_server.plan import ReplayPlan

    rng = np.random.default_rng(SEED)
    plan = ReplayPlan(
        seed=SEED,
        num_cpus=1.0,
        capacity=rows,
        sampling=sampling,
        priority_exponent=PRIORITY_EXPONENT,
        priority_epsilon=1e-6,
        min_size_to_sample=1,
        samples_per_insert=None,
        limiter_tolerance_samples=1,
        largest_chunk_transitions=FILL_CHUNK,
        largest_request_samples=BATCHES_PER_CALL * batch,
    )
    spec = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
    shard = build_shard(plan, spec, run_id="bench", shard=0)
    for seq, start in enumerate(range(0, rows, FILL_CHUNK)):
        n = min(FILL_CHUNK, rows - start)
        chunk_id = ChunkId("bench", 0, 0, seq)
        shard.insert(TransitionChunk(chunk_id, random_columns(rng, n), rng.random(n), 0, n), 0.0)
    n = BATCHES_PER_CALL * batch
    errors = rng.random(n)

    def uniform() -> None:
        shard.sample(n, 1.0)

    def prioritized() -> None:
        sample = shard.sample(n, 1.0)
        probabilities = sample.probabilities.reshape(BATCHES_PER_CALL, batch)
        importance_weights(probabilities, sample.stats.size, IMPORTANCE_EXPONENT)
        shard.update_priorities(PriorityUpdate(sample.item_keys, errors))

    return uniform if sampling == "uniform" else prioritized


def make_cpprb_call(sampling: str, batch: int, rows: int, calls: int) -> Callable[[], None]:
    import cpprb

    rng = np.random.default_rng(SEED)
    columns = random_columns(rng, FILL_CHUNK)
    layout = {
        name: {"dtype": column.dtype, "shape": column.shape[1:] or 1}
        for name, column in columns.items()
    }
    uniform_buffer = sampling == "uniform"
    buffer = (
        cpprb.ReplayBuffer(rows, layout)
        if uniform_buffer
        else cpprb.PrioritizedReplayBuffer(rows, layout, alpha=PRIORITY_EXPONENT)
    )
    for start in range(0, rows, FILL_CHUNK):
        n = min(FILL_CHUNK, rows - start)
        part = {name: column[:n] for name, column in random_columns(rng, FILL_CHUNK).items()}
        extra = {} if uniform_buffer else {"priorities": rng.random(n)}
        buffer.add(**part, **extra)
    n = BATCHES_PER_CALL * batch // calls
    errors = rng.random(n)

    def uniform() -> None:
        for _ in range(calls):
            buffer.sample(n)

    def prioritized() -> None:
        for _ in range(calls):
            sample = buffer.sample(n, beta=IMPORTANCE_EXPONENT)
            buffer.update_priorities(sample["indexes"], errors)

    return uniform if uniform_buffer else prioritized


def measure(side: str, rows: int, repeats: int, repeat_s: float) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for sampling, batch in MEASUREMENTS:
        samples = BATCHES_PER_CALL * batch
        row: dict[str, object] = {"sampling": sampling, "batch": batch}
        if side == "qfleet":
            call = make_qfleet_call(sampling, batch, rows)
            row["samples_per_s"] = round(samples_per_s(call, samples, repeats, repeat_s))
        else:
            for key, calls in (("batch_per_call", BATCHES_PER_CALL), ("all_in_one_call", 1)):
                call = make_cpprb_call(sampling, batch, rows, calls)
                rate = samples_per_s(call, samples, repeats, repeat_s)
                row[f"samples_per_s_{key}"] = round(rate)
        results.append(row)
    return results


def cpu_model() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions held")
    parser.add_argument("--repeats", type=int, default=5, help="runs whose median counts")
    parser.add_argument("--repeat-s", type=float, default=0.5, help="seconds of one run")
    parser.add_argument("--peer-python", help="an interpreter with cpprb, measured side by side")
    parser.add_argument("--side", choices=("qfleet", "cpprb"), default="qfleet")
    args = parser.parse_args()

    packages = {"python": platform.python_version(), "numpy": version("numpy")}
    if args.side == "cpprb":
        packages["cpprb"] = version("cpprb")
    report: dict[str, object] = {
        "benchmark": "replay_in_process",
        "side": args.side,
        "machine": {"cpu": cpu_model(), "system": platform.platform()},
        "versions": packages,
        "rows": args.rows,
        "batches_per_call": BATCHES_PER_CALL,
        "repeats": args.repeats,
        "results": measure(args.side, args.rows, args.repeats, args.repeat_s),
    }
    if args.peer_python:
        command = [args.peer_python, __file__, "--side", "cpprb", "--rows", str(args.rows)]
        command += ["--repeats", str(args.repeats), "--repeat-s", str(args.repeat_s)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        report["peer"] = json.loads(answer.stdout)
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
