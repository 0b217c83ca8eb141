"""How fast one replay shard samples in its own process, states and frames; prints one JSON object.

    PYTHONPATH=src python benchmarks/replay_in_process.py [--only frames] [--peer-python PATH]

Seconds are those of the CPU: it is one thread, and a busy machine then changes little. One call
asks for 8 batches. `uniform`: sample. `prioritized`: sample, importance-sampling weights and
priority update. `frames`: uniform, stacks of 4 × 84 × 84 bytes, each frame held once, as many
batches a call as the learner asks for (32 MB at most); with the resident bytes of a transition.
With `--peer-python`, an interpreter that has cpprb (and NumPy) runs the same measurement on cpprb:
once with a call per batch and once with one call for all; for frames with its `next_of` and
`stack_compress`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # neither interpreter has both
    import cpprb

    from qfleet.common.types import EnvironmentSpec
    from qfleet.replay_server.replay_shard import ReplayShard

BATCHES_PER_CALL = 8
MEASUREMENTS = (
    ("uniform", 32),
    ("uniform", 512),
    ("prioritized", 32),
    ("prioritized", 512),
    ("prioritized", 4096),
    ("frames", 32),
    ("frames", 512),
)
STACK, FRAME_PX = 4, 84
FRAME_BATCHES_PER_CALL = {32: 8, 512: 1}
FRAME_CHUNK = 500
FILL_CHUNK = 10_000
PRIORITY_EXPONENT, IMPORTANCE_EXPONENT, SEED = 0.6, 0.4, 0


def samples_per_s(call: Callable[[], None], samples: int, repeats: int, repeat_s: float) -> float:
    """Median over `repeats` runs of `repeat_s` seconds each."""
    call()
    rates = []
    for _ in range(repeats):
        calls, start_s = 0, time.process_time()
        while (elapsed_s := time.process_time() - start_s) < repeat_s:
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


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def frame_columns(n: int) -> dict[str, np.ndarray]:
    """The columns of `random_columns` that are not observations."""
    columns = random_columns(np.random.default_rng(SEED), n)
    return {name: column for name, column in columns.items() if "observation" not in name}


def make_shard(sampling: str, rows: int, samples: int, spec: EnvironmentSpec) -> ReplayShard:
    from qfleet.replay_server.build import build_shard
    from qfleet.replay_server.plan import ReplayPlan

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
        largest_request_samples=samples,
        compression="none",
    )
    return build_shard(plan, spec, run_id="bench", shard=0)


def make_qfleet_frames_shard(samples: int, rows: int) -> ReplayShard:
    from qfleet.common.pixels.frame_run import FrameRun
    from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk

    spec = EnvironmentSpec("E", (STACK, FRAME_PX, FRAME_PX), "|u1", 2, None, None, STACK)
    shard = make_shard("uniform", rows, samples, spec)
    shape = (FRAME_CHUNK, FRAME_PX, FRAME_PX)
    pictures = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    for seq, first in enumerate(range(0, rows, FRAME_CHUNK)):
        newest = np.arange(first, first + FRAME_CHUNK)[:, None] - np.arange(STACK)[::-1]
        columns = {
            "observation": np.maximum(newest - 1, 0),
            **frame_columns(FRAME_CHUNK),
            "next_observation": np.maximum(newest, 0),
        }
        run = FrameRun(first, max(0, first + FRAME_CHUNK - STACK - 1), pictures)
        chunk_id = ChunkId("bench", 0, 0, seq)
        shard.insert(TransitionChunk(chunk_id, columns, None, 0, FRAME_CHUNK, (), run), 0.0)
    return shard


def make_qfleet_call(sampling: str, batch: int, rows: int) -> Callable[[], None]:
    from qfleet.common.prioritization import importance_weights
    from qfleet.common.types import ChunkId, EnvironmentSpec, PriorityUpdate, TransitionChunk

    rng = np.random.default_rng(SEED)
    n = BATCHES_PER_CALL * batch
    spec = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
    shard = make_shard(sampling, rows, n, spec)
    for seq, start in enumerate(range(0, rows, FILL_CHUNK)):
        m = min(FILL_CHUNK, rows - start)
        chunk_id = ChunkId("bench", 0, 0, seq)
        shard.insert(TransitionChunk(chunk_id, random_columns(rng, m), rng.random(m), 0, m), 0.0)
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


def make_cpprb_frames_buffer(rows: int) -> cpprb.ReplayBuffer:
    import cpprb

    others = frame_columns(FRAME_CHUNK)
    layout = {name: {"dtype": column.dtype} for name, column in others.items()}
    layout["observation"] = {"dtype": np.uint8, "shape": (FRAME_PX, FRAME_PX, STACK)}
    buffer = cpprb.ReplayBuffer(rows, layout, next_of="observation", stack_compress="observation")
    shape = (FRAME_CHUNK + STACK, FRAME_PX, FRAME_PX)
    pictures = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(pictures, STACK, axis=0)
    for _ in range(rows // FRAME_CHUNK):
        buffer.add(observation=windows[:-1], next_observation=windows[1:], **others)
    return buffer


def measure_frames(
    side: str, batch: int, rows: int, repeats: int, repeat_s: float
) -> dict[str, object]:
    """One row of the results, with what a transition takes of this process's memory."""
    samples, row = FRAME_BATCHES_PER_CALL[batch] * batch, {"sampling": "frames", "batch": batch}
    if side == "qfleet":
        make_qfleet_frames_shard(samples, FRAME_CHUNK)  # what is imported is no row's
    before = resident_bytes()
    if side == "qfleet":
        shard = make_qfleet_frames_shard(samples, rows)
        calls = {
            "samples_per_s": (lambda: shard.sample(samples, 1.0), samples),
            "samples_per_s_batch_per_call": (lambda: shard.sample(batch, 1.0), batch),
        }
    else:
        buffer = make_cpprb_frames_buffer(rows)
        calls = {
            "samples_per_s_batch_per_call": (lambda: buffer.sample(batch), batch),
            "samples_per_s_all_in_one_call": (lambda: buffer.sample(samples), samples),
        }
    held = resident_bytes() - before
    for key, (call, n) in calls.items():
        row[key] = round(samples_per_s(call, n, repeats, repeat_s))
    return {**row, "bytes_per_transition": round(held / rows)}


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    effort = args.repeats, args.repeat_s
    for sampling, batch in MEASUREMENTS:
        if args.only not in (None, sampling):
            continue
        if sampling == "frames":
            results.append(measure_frames(args.side, batch, args.frame_rows, *effort))
            continue
        samples = BATCHES_PER_CALL * batch
        row: dict[str, object] = {"sampling": sampling, "batch": batch}
        if args.side == "qfleet":
            call = make_qfleet_call(sampling, batch, args.rows)
            row["samples_per_s"] = round(samples_per_s(call, samples, *effort))
        else:
            for key, calls in (("batch_per_call", BATCHES_PER_CALL), ("all_in_one_call", 1)):
                call = make_cpprb_call(sampling, batch, args.rows, calls)
                row[f"samples_per_s_{key}"] = round(samples_per_s(call, samples, *effort))
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
    parser.add_argument("--only", choices=("uniform", "prioritized", "frames"), help="one kind")
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions held")
    parser.add_argument("--frame-rows", type=int, default=200_000, help="those of frames")
    parser.add_argument("--repeats", type=int, default=5, help="runs whose median counts")
    parser.add_argument("--repeat-s", type=float, default=0.5, help="CPU seconds of one run")
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
        "frame_rows": args.frame_rows,
        "batches_per_call": BATCHES_PER_CALL,
        "repeats": args.repeats,
        "results": measure(args),
    }
    if args.peer_python:
        command = [args.peer_python, __file__, "--side", "cpprb", "--rows", str(args.rows)]
        command += ["--frame-rows", str(args.frame_rows)] + ["--only", args.only] * bool(args.only)
        command += ["--repeats", str(args.repeats), "--repeat-s", str(args.repeat_s)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        report["peer"] = json.loads(answer.stdout)
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
