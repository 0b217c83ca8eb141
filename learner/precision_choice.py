"""Whether a CPU updates faster in bfloat16: measured, for `learner.precision: auto`.

Called by the door before a run from frames. Processors with the same instructions differ (AMX, or
AVX-512 with bfloat16 only; on some autocast is slower although its matrix products are faster).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np

from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec, ReplaySample, transition_columns
from qfleet.learner.plan import LearnerPlan, Precision
from qfleet.learner.torch_backend import eager_backend

LEAST_GAIN = 1.2
"""Times as fast as float32 that bfloat16 has to be: rounding is not for nothing."""
_ROUNDS = 3


def faster_precision(
    plan: LearnerPlan,
    spec: EnvironmentSpec,
    update_s: Callable[[LearnerPlan, EnvironmentSpec], float] | None = None,
) -> tuple[Precision, float]:
    """What this CPU updates faster in, and bfloat16's speed as a multiple of float32's.

    Args:
        plan: Of the learner; its own precision does not matter.
        spec: Its environment.
        update_s: Seconds of an update; None measures the fastest of a few eager ones.
    """
    measured = update_s or _update_s
    full, rounded = (
        measured(dataclasses.replace(plan, precision=name, updates_per_call=1), spec)
        for name in ("float32", "bfloat16")
    )
    gain = full / rounded
    return ("bfloat16" if gain >= LEAST_GAIN else "float32"), gain


def _update_s(plan: LearnerPlan, spec: EnvironmentSpec) -> float:
    limit_threads(plan.num_cpus)
    backend, sample = eager_backend(plan, spec, "cpu"), _sample(plan, spec)
    backend.run(sample)  # the first one allocates, and chooses its kernels
    fastest_s = math.inf
    for _ in range(_ROUNDS):
        started_s = time.perf_counter()
        backend.run(sample)
        fastest_s = min(fastest_s, time.perf_counter() - started_s)
    return fastest_s


def _sample(plan: LearnerPlan, spec: EnvironmentSpec) -> ReplaySample:
    """One batch of noise."""
    shape = (1, plan.batch_size)
    rng = np.random.default_rng(0)
    columns = {
        column.name: rng.integers(0, 2, (*shape, *column.shape)).astype(column.dtype)
        for column in transition_columns(spec)
    }
    return ReplaySample(
        columns,
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int32),
        np.ones(shape, dtype=np.float32),
    )
