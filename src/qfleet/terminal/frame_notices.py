"""What a run from frames will cost, said before it starts: memory, and hours on a CPU.

Called by the composition root. Runs from states are small and fast; their forecast is made from
their first seconds (`session/forecast.py`). A run by episodes has no such seconds: its first sign
of progress comes after an episode's updates, which take a CPU minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import psutil

from qfleet.common.role_place import memory_bytes
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.plan import LearnerPlan
from qfleet.replay_server.row_bytes import ASSUMED_COMPRESSION
from qfleet.session.forecast import LONG_S
from qfleet.settings.checks.machine_checks import replay_bytes
from qfleet.settings.config import Config
from qfleet.settings.plans import run_plans
from qfleet.terminal.console import duration

_TUTORIAL, _CHEAPER = "tutorial-pixels", "qfleet train cartpole-pixels"


def frame_notices(
    config: Config,
    spec: EnvironmentSpec,
    updates_per_s: Callable[[LearnerPlan, EnvironmentSpec], float] | None = None,
) -> Iterator[str]:
    """Lines for a new run; none where observations are states.

    Args:
        config: Resolved.
        spec: Its environment.
        updates_per_s: How fast the learner is here; None measures it within two seconds.
    """
    if spec.frame_stack is None:
        return
    total = memory_bytes()
    free = min(psutil.virtual_memory().available, total)
    is_compressed = config.replay.compression != "none"
    once = "each frame once"
    where = "here" if config.runtime == "local" else "on this host; each shard's is asked, too"
    once += f", compressed (to a {ASSUMED_COMPRESSION}th, assumed)" if is_compressed else ""
    yield (
        f"replay: {config.replay.capacity:,} transitions take "
        f"{replay_bytes(config, spec) / 2**30:.2f} GiB when all are there, {once}; "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of memory are free {where}"
    )
    per_episode, episodes = config.learner.updates_per_episode, config.run.max_episodes
    on_cpu = config.learner.num_gpus == 0 or config.learner.device == "cpu"
    if per_episode is None or episodes is None or not on_cpu:
        return
    rate = (updates_per_s or measured_updates_per_s)(run_plans(config).learner, spec)
    updates = episodes * per_episode
    updates = min(updates, config.run.max_learner_steps or updates)
    if updates / rate <= LONG_S:
        return
    cheaper = (
        f"`{_CHEAPER}` learns from the same pixels with far cheaper updates"
        if config.preset_name == _TUTORIAL
        else "--network.kind small makes updates cheaper"
    )
    yield (
        f"forecast: {rate:.1f} updates/s on this CPU, so {duration(per_episode / rate)} for the "
        f"{per_episode:,} updates after each episode and {duration(updates / rate)} for "
        f"{math.ceil(updates / per_episode)} episodes (sooner when solved); a GPU is used when "
        f"there is one, and {cheaper}"
    )


def measured_updates_per_s(plan: LearnerPlan, spec: EnvironmentSpec) -> float:
    """Updates per second of this run's own learner on this CPU, on one batch of zeros."""
    import numpy as np

    from qfleet.common.threads import limit_threads
    from qfleet.common.types import ReplaySample, transition_columns
    from qfleet.learner.learner import Learner

    learner = Learner(plan, spec, "cpu")
    limit_threads(plan.num_cpus)
    shape = (1, plan.batch_size)
    sample = ReplaySample(
        {c.name: np.zeros((*shape, *c.shape), dtype=c.dtype) for c in transition_columns(spec)},
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int32),
        np.ones(shape, dtype=np.float32),
    )
    learner.update_block(sample)  # the first one allocates
    started_s = time.perf_counter()
    learner.update_block(sample)
    return 1.0 / (time.perf_counter() - started_s)
