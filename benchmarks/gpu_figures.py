"""What a GPU gives in the local runtime: learner eager beside CUDA graph, acting, a whole run.

    PYTHONPATH=src python benchmarks/gpu_figures.py [--json FILE]
    PYTHONPATH=src python benchmarks/gpu_figures.py --device cpu --part-s 1      # tries the program

Less than ten minutes in all, every figure within its own time; needs qfleet and its core
dependencies, not Ray. `block` is the block alone with its batches on the device; `block with copy`
begins with the sample in host memory; both end with the TD errors in host memory, as the learner
needs them. `update_block` is the whole learner: statistics, target syncs and publishing too. The
forms take turns. The learning twin: how far the graph's parameters are from those of the eager form
after the same updates, and how far a second eager run is. Without a GPU the graph's function runs
without being recorded (`static`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from gpu_workloads import (
    FRAMES,
    PRESETS,
    Workload,
    accelerator,
    frames_workload,
    preset_workload,
)
from machine import finish, make_parser
from torch import Tensor

from qfleet.bench.bench_record import Measurement
from qfleet.common.forward import input_transform
from qfleet.common.networks import build_network
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.cuda_graph import Replay, StaticBlock, StaticFunction, capture_graph
from qfleet.learner.learner import Learner
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.update import Batches, BlockFunction, LearnerState, copy_tensors, eager_block

ACTING_SUB_ENVIRONMENTS = (16, 64, 256)
REPEATS, MIN_REPEATS = 15, 3
SOLVE_MARGIN_S = 60.0
"""For the start, the confirmation and the files of a run, on top of its own time."""


def unrecorded(function: StaticFunction, inputs: Sequence[Tensor]) -> Replay:
    return lambda: function(inputs)


class Bench:
    """Measures within a time for each figure and a time in all, and keeps what came out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._device = torch.device(arguments.device)
        self._has_gpu = self._device.type == "cuda"
        self._fast = "graph" if self._has_gpu else "static"
        self._part_s: float = arguments.part_s
        self._twin_updates: int = arguments.twin_updates
        self._solve_s: float = arguments.solve_s
        self._end_s = time.perf_counter() + arguments.total_s
        self.found: list[Measurement] = []
        self.notes: list[str] = []

    def run(self, name: str, part: Callable[[], None]) -> None:
        """One part, unless the time in all is over."""
        if self._left_s() <= 0.0:
            self.notes.append(f"{name}: not measured, the time was used up (--total-s)")
            return
        print(f"{name} …", flush=True)
        part()

    def _left_s(self) -> float:
        return self._end_s - time.perf_counter()

    def _in_turn(
        self, name: str, unit: str, calls: dict[str, Callable[[], object]], items: int
    ) -> None:
        """Items per second of every call, in turns until the figure's time is over."""
        figure_s = min(self._part_s, self._left_s())
        repeat_s = figure_s / (REPEATS * len(calls))
        rates: dict[str, list[float]] = {form: [] for form in calls}
        for call in calls.values():
            call()
        end_s = time.perf_counter() + figure_s
        while min(map(len, rates.values())) < MIN_REPEATS or time.perf_counter() < end_s:
            for form, call in calls.items():
                rates[form].append(items * calls_per_s(call, repeat_s))
        for form, values in rates.items():
            self.found.append(Measurement(f"{name}, {form}", unit, tuple(values)))
        if self._fast in rates:
            pairs = zip(rates[self._fast], rates["eager"], strict=True)
            ratios = tuple(fast / eager for fast, eager in pairs)
            self.found.append(Measurement(f"{name}, {self._fast} over eager", "×", ratios))

    def block(self, workload: Workload) -> None:
        """The K-update block, the copy to the device left out and included."""
        device = str(self._device)
        rule, state, hyper = initial_block_inputs(workload.plan, workload.environment, device)
        stager = BatchStager(self._device)
        sample = workload.sample(seed=0)
        batches = Batches(*(column.clone() for column in stager.stage(sample).tensors()))
        started_s = time.perf_counter()
        capture = capture_graph if self._has_gpu else unrecorded
        fast = StaticBlock(rule, state, batches, hyper, capture)
        recording_s = time.perf_counter() - started_s
        forms: dict[str, BlockFunction] = {"eager": eager_block(rule), self._fast: fast}

        def call(form: str, *, with_copy: bool) -> Tensor:
            given = stager.stage(sample) if with_copy else batches
            return forms[form](state, given, hyper).td_errors_abs.cpu()

        for what, with_copy in (("block", False), ("block with copy", True)):
            calls = {form: partial(call, form, with_copy=with_copy) for form in forms}
            self._in_turn(f"{workload.name}, {what}", "updates/s", calls, workload.n_updates)
        about = {
            "batch_size": workload.plan.batch_size,
            "updates_per_block": workload.n_updates,
            "bytes_to_device_per_update": bytes_per_update(batches),
        }
        name = f"{workload.name}, {self._fast} made ready"
        self.found.append(Measurement(name, "s", (recording_s,), about))
        self._twin(workload, forms, state, hyper)

    def _twin(
        self,
        workload: Workload,
        forms: dict[str, BlockFunction],
        state: LearnerState,
        hyper: Hyperparameters,
    ) -> None:
        stager = BatchStager(self._device)
        runs = {"eager": forms["eager"], "again": forms["eager"], "fast": forms[self._fast]}
        states = dict.fromkeys(runs, state)
        n_updates, end_s = 0, time.perf_counter() + min(self._part_s, self._left_s())
        while n_updates < self._twin_updates and (not n_updates or time.perf_counter() < end_s):
            batches = stager.stage(workload.sample(seed=n_updates))
            for name, run in runs.items():
                states[name] = synced(run(states[name], batches, hyper).state)
            n_updates += workload.n_updates
        apart = distance(states["eager"], states["fast"])
        spread = distance(states["eager"], states["again"])
        self.notes.append(
            f"{workload.name}: {workload.about}; after {n_updates} updates the parameters of "
            f"{self._fast} are {apart:.1e} from eager, those of a second eager run {spread:.1e}"
        )

    def learner(self, workload: Workload) -> None:
        """The whole learner as a run uses it."""
        modes = {"eager": "off", "graph": "required"} if self._has_gpu else {"eager": "off"}
        sample = workload.sample(seed=0)
        learners = {
            form: Learner(
                replace(workload.plan, compile=mode), workload.environment, str(self._device)
            )
            for form, mode in modes.items()
        }

        def learn(learner: Learner) -> None:
            learner.update_block(sample)
            if learner.publish_due:
                learner.publish()
            learner.take_snapshots()

        calls = {form: partial(learn, learner) for form, learner in learners.items()}
        self._in_turn(f"{workload.name}, update_block", "updates/s", calls, workload.n_updates)

    def acting(self) -> None:
        """From frames on the host to greedy actions on the host, as an actor there would need."""
        workload = frames_workload(1, None)
        network = build_network(workload.plan.network, FRAMES, seed=0).to(self._device).eval()
        scaled = input_transform(FRAMES)
        for n in ACTING_SUB_ENVIRONMENTS:
            frames = torch.randint(0, 256, (n, *FRAMES.observation_shape), dtype=torch.uint8)
            on_host = frames.pin_memory() if self._has_gpu else frames

            def act(on_host: Tensor = on_host) -> Tensor:
                with torch.inference_mode():
                    q_values = network(scaled(on_host.to(self._device, non_blocking=True)))
                    return q_values.argmax(-1).cpu()

            name = f"acting on frames, {n} environments"
            self._in_turn(name, "steps/s", {str(self._device): act}, n)

    def solve(self) -> None:
        """`qfleet train cartpole` in a new process."""
        budget_s = max(1.0, min(self._solve_s, self._left_s() - SOLVE_MARGIN_S))
        with tempfile.TemporaryDirectory(prefix="qfleet-gpu-") as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "qfleet", "train", "cartpole", "--runtime", "local"]
            command += ["--device", str(self._device), "--seed", "1", "--run-dir", str(run)]
            command += ["--run.max_wall_s", f"{budget_s:g}"]
            paths = [str(Path(path).resolve()) for path in sys.path if path]
            started_s = time.perf_counter()
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
                timeout=budget_s + SOLVE_MARGIN_S,
                check=False,
            )
            wall_s = time.perf_counter() - started_s
            file = run / "summary.json"
            if not file.exists():
                raise SystemExit(f"`{' '.join(command)}` left no summary:\n{done.stderr}")
            summary = json.loads(file.read_text())
        names = ("solved", "learner_path", "device", "learner_steps", "learner_steps_per_s")
        about = {name: summary[name] for name in names}
        ended = "solved" if summary["solved"] else f"not solved within {budget_s:g} s"
        self.found += [
            Measurement(f"cartpole, command to exit, {ended}", "s", (wall_s,), about),
            Measurement("cartpole, training alone", "s", (summary["train_s"],)),
        ]


def calls_per_s(call: Callable[[], object], repeat_s: float) -> float:
    """Over `repeat_s` seconds or one call, whichever is longer; every call waits for the GPU."""
    calls, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < repeat_s or not calls:
        call()
        calls += 1
    return calls / elapsed_s


def synced(state: LearnerState) -> LearnerState:
    return state._replace(
        target_parameters=copy_tensors(state.parameters),
        target_buffers=copy_tensors(state.buffers),
    )


def distance(a: LearnerState, b: LearnerState) -> float:
    """Largest difference of a parameter over the largest magnitude of its tensor."""
    pairs = zip(a.parameters.values(), b.parameters.values(), strict=True)
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in pairs)


def bytes_per_update(batches: Batches) -> int:
    n_bytes = sum(column.numel() * column.element_size() for column in batches.tensors())
    return n_bytes // batches.actions.shape[0]


def parts(bench: Bench, updates_per_block: int | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every part by its name, the most wanted first."""
    for name in PRESETS:
        workload = preset_workload(name, updates_per_block)
        yield name, partial(bench.block, workload)
        yield f"{name}-learner", partial(bench.learner, workload)
    for batch_size in (32, 512):
        workload = frames_workload(batch_size, updates_per_block)
        yield workload.name, partial(bench.block, workload)
    yield "acting", bench.acting
    yield "solve", bench.solve


def refuse_missing_gpu(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"gpu_figures: torch {torch.__version__} sees no usable GPU; run this on a machine "
            "with an NVIDIA GPU and a CUDA build of torch (`qfleet doctor` says what is missing), "
            "or try the program without one: --device cpu"
        )


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program")
    parser.add_argument("--part-s", type=float, default=12.0, help="seconds for each figure")
    parser.add_argument("--solve-s", type=float, default=120.0, help="seconds for the whole run")
    parser.add_argument("--total-s", type=float, default=480.0, help="no part begins after these")
    parser.add_argument("--twin-updates", type=int, default=1_000)
    parser.add_argument("--updates-per-block", type=int, help="default: the preset's; frames: 8")
    parser.add_argument("--parts", help="comma-separated; default: all")
    arguments = parser.parse_args()
    refuse_missing_gpu(arguments.device)
    torch.set_num_threads(1)
    bench = Bench(arguments)
    available = dict(parts(bench, arguments.updates_per_block))
    chosen = arguments.parts.split(",") if arguments.parts else list(available)
    unknown = [name for name in chosen if name not in available]
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: there are {', '.join(available)}")
    for name in chosen:
        bench.run(name, available[name])
    arguments.accelerator = accelerator(torch.device(arguments.device))
    facts = ", ".join(f"{name} {value}" for name, value in arguments.accelerator.items())
    finish("gpu_figures", arguments, bench.found, [*bench.notes, f"accelerator: {facts}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
