"""Updates per second of the learner's block: eager PyTorch beside the device's fast form.

    python benchmarks/learner_speed.py [--json FILE]
    python benchmarks/learner_speed.py --device cuda [--json FILE]      # without Ray, a few minutes
    python benchmarks/learner_speed.py --workloads course-frames-32 --twin-updates 16 --repeats 3

On a CPU the fast form is the compiled package (built first where it is missing, half a minute), on
a GPU the CUDA graph. Each workload is a preset or, on a GPU, a network of convolutions on frames,
in float32 and with `learner.precision bfloat16`; batches of noise lie in host memory, in blocks of
the workload's K, and the TD errors come back there. `frames kept`: they are on the GPU already and
draws name them by place, as in a run in lockstep. The forms take turns within each repeat, so that
a busy machine slows both. `block` is the block alone, `update_block` the whole `Learner`:
statistics, target syncs, publishing. The learning twin: the largest relative distance of parameters
from eager after 1,000 updates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from learner_workloads import ON_FRAMES, PRESETS, Workload, accelerator, workload
from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.common.types import ReplaySample
from qfleet.learner.backend import LearnerBackend
from qfleet.learner.fast.backends import eager_backend, starting_backend
from qfleet.learner.fast.package_spec import cpu_identity
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan

Calls = dict[str, Callable[[], object]]


def updates_per_s(call: Callable[[], object], updates: int, repeat_s: float) -> float:
    calls, start_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - start_s) < repeat_s or not calls:
        call()
        calls += 1
    return calls * updates / elapsed_s


def side_by_side(name: str, calls: Calls, updates: int, arguments: Any) -> list[Measurement]:
    """Updates per second of every form, in turns, and the ratios of neighbours."""
    rates: dict[str, list[float]] = {form: [] for form in calls}
    for call in calls.values():
        call()
    for _ in range(arguments.repeats):
        for form, call in calls.items():
            rates[form].append(updates_per_s(call, updates, arguments.repeat_s))
    found = [Measurement(f"{name}, {form}", "updates/s", tuple(v)) for form, v in rates.items()]
    for form in rates.keys() - {"eager"}:
        ratios = tuple(f / e for f, e in zip(rates[form], rates["eager"], strict=True))
        found.append(Measurement(f"{name}, {form} over eager", "×", ratios))
    return found


def forms(load: Workload, device: str) -> dict[str, LearnerPlan]:
    """Eager, the device's fast form for this network, and of convolutions both in bfloat16."""
    is_convolutional = load.plan.network.is_convolutional
    found = {"eager": replace(load.plan, compile="off")}
    if device != "cpu" or not is_convolutional:
        fast = "compiled" if device == "cpu" else "cuda graph"
        found[fast] = replace(load.plan, compile="required")
    if is_convolutional:
        rounded = {f: replace(plan, precision="bfloat16") for f, plan in found.items()}
        found |= {f"{form}, bfloat16": plan for form, plan in rounded.items()}
    return found


def backends(load: Workload, device: str) -> dict[str, LearnerBackend]:
    """What carries out the updates, by form."""
    plans = forms(load, device)
    return {form: starting_backend(p, load.environment, device) for form, p in plans.items()}


def advance(backend: LearnerBackend, sample: ReplaySample) -> None:
    backend.run(sample)
    backend.accept()


def learn(learner: Learner, sample: ReplaySample) -> None:
    learner.update_block(sample)
    if learner.publish_due:
        learner.publish()
    learner.take_snapshots()


def measure(load: Workload, arguments: Any) -> list[Measurement]:
    device, sample, k = arguments.device, load.sample(), load.plan.updates_per_call
    started_s = time.perf_counter()
    ready = backends(load, device)
    ready_s = time.perf_counter() - started_s
    blocks: Calls = {form: partial(advance, backend, sample) for form, backend in ready.items()}
    learners: Calls = {
        form: partial(learn, Learner(plan, load.environment, device), sample)
        for form, plan in forms(load, device).items()
    }
    if device != "cpu" and load.environment.frame_stack is not None:
        every, sample = load.samples_by_place()
        plan = forms(load, device)["cuda graph"]
        backend = starting_backend(plan, load.environment, device)
        learner = Learner(plan, load.environment, device)
        advance(backend, every)
        learn(learner, every)
        blocks["cuda graph, frames kept"] = partial(advance, backend, sample)
        learners["cuda graph, frames kept"] = partial(learn, learner, sample)
    about = {
        "batch_size": load.plan.batch_size,
        "updates_per_block": k,
        "ready_s": round(ready_s, 3),
        **distances(load, load.sample(), arguments),
    }
    found = side_by_side(f"{load.name}, block", blocks, k, arguments)
    found[len(blocks) - 1] = replace(found[len(blocks) - 1], detail=about)
    return found + side_by_side(f"{load.name}, update_block", learners, k, arguments)


def distances(load: Workload, sample: ReplaySample, arguments: Any) -> dict[str, str]:
    """Largest difference of a parameter from eager over the largest magnitude of its array.

    `eager again` is how far two eager runs are apart, which on a GPU is not nothing.
    """
    updates, device = arguments.twin_updates, arguments.device
    compared = {
        **backends(load, device),
        "eager again": eager_backend(load.plan, load.environment, device),
    }
    for _ in range(updates // sample.n_batches):
        for backend in compared.values():
            advance(backend, sample)
            backend.sync_target()
    eager = compared.pop("eager").online()
    return {
        f"{form} from eager after {updates}": f"{apart(eager, backend.online()):.1e}"
        for form, backend in compared.items()
    }


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    pairs = zip(a.values(), b.values(), strict=True)
    return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)) for x, y in pairs)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--workloads", nargs="+", choices=[*PRESETS, *ON_FRAMES])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--repeat-s", type=float, default=0.4)
    parser.add_argument("--twin-updates", type=int, default=1_000)
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"learner_speed: torch {torch.__version__} sees no usable GPU; run this on a machine "
            "with an NVIDIA GPU and a CUDA build of torch (`qfleet doctor` says what is missing), "
            "or with --device cpu"
        )
    torch.set_num_threads(1)
    names = arguments.workloads or [
        *PRESETS,
        *(ON_FRAMES if arguments.device != "cpu" else ()),
    ]
    loads = [workload(name) for name in names]
    found: list[Measurement] = []
    for load in loads:
        started_s = time.perf_counter()
        found += measure(load, arguments)
        print(f"{load.name}: {time.perf_counter() - started_s:.0f} s", file=sys.stderr)
    arguments.accelerator = accelerator(arguments.device)
    notes = [f"{load.name}: {load.about}" for load in loads]
    finish("learner_speed", arguments, found, [*notes, f"CPU: {cpu_identity()}, one thread"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
