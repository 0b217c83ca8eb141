"""A learner fed by a replay server over Ray, beside the same learner and replay in one process.

    python benchmarks/learner_over_ray.py [--json FILE]

Prioritized replay, batch 64, the default preset's network, one actor that pushes to the shard all
the time: as in a run of the preset, where the limiter holds it to 16 samples per insert, and
playing freely, where it takes a core for itself. In turn, so that drift hits both alike: the
learner trains from the shard as it does in a run (two requests in flight, priorities sent back,
parameters published); a learner in a process of its own trains block by block from a shard core
beside it, filled with the same number of transitions. Updates per second of both, and the ratio of
neighbours; eager and compiled.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from machine import finish, make_parser
from producers import RUN_ID, START_TIMEOUT_S, start_producers
from timed_roles import TimedRoles, start_roles

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import SEED, random_columns, resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.plan_json import plan_from_json, plan_to_json
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner.plan import LearnerPlan
from qfleet.prebuild import prebuild_preset
from qfleet.replay_server.plan import ReplayPlan
from qfleet.settings.plans import run_plans

FILL_CHUNK = 10_000
PLAYING = {"held": "actor as in a run", "free": "actor playing freely"}
WARM_UP_S = {"eager": 8.0, "compiled": 3.0}
"""50,000 transitions at 16 draws each are 12,500 updates of 64."""


class InProcess:
    """Learner and one shard's core in one process, block by block as the local runtime does it."""

    def __init__(self, learner_json: str, replay_json: str, spec_json: str) -> None:
        from qfleet.common.stage_clock import StageClock
        from qfleet.common.threads import limit_threads
        from qfleet.fleets.local_fleet import LocalReplay
        from qfleet.learner.block_runner import BlockPlanner
        from qfleet.learner.learner import Learner
        from qfleet.replay_server.build import build_shard

        plan = plan_from_json(LearnerPlan, learner_json)
        spec = EnvironmentSpec.from_json(spec_json)
        self._learner, self._planner = Learner(plan, spec, "cpu"), BlockPlanner(plan)
        limit_threads(plan.num_cpus)
        shard = build_shard(plan_from_json(ReplayPlan, replay_json), spec, run_id=RUN_ID, shard=0)
        rng = np.random.default_rng(SEED)
        for seq in range(shard.capacity // FILL_CHUNK):
            columns = random_columns(rng, FILL_CHUNK, spec)
            errors = rng.exponential(size=FILL_CHUNK)
            chunk_id = ChunkId(RUN_ID, 0, 0, seq)
            shard.insert(TransitionChunk(chunk_id, columns, errors, 0, FILL_CHUNK), 0.0)
        self._replay, self._clock = LocalReplay([shard]), StageClock()

    def path(self) -> str:
        """How its blocks are computed."""
        return self._learner.path

    def train(self, seconds: float) -> tuple[int, float]:
        """(updates, seconds): whole blocks for about so long."""
        from qfleet.learner.block_runner import run_blocks

        before, started_s = self._learner.learner_steps, time.monotonic()
        while time.monotonic() - started_s < seconds:
            run_blocks(self._learner, self._planner, self._replay, 1, self._clock)
            if self._learner.publish_due:
                self._learner.publish()
            self._learner.take_snapshots()
        return self._learner.learner_steps - before, time.monotonic() - started_s


def over_ray(roles: TimedRoles, seconds: float) -> float:
    """Updates per second of the learner's own loop over so many seconds."""
    answer(roles.learner.allow_run.remote(), "benchmark", "the learner")
    running = roles.learner.run.remote()
    time.sleep(0.2)
    began_s = time.monotonic()
    time.sleep(seconds)
    ended_s = time.monotonic()
    answer(roles.learner.request_stop.remote(), "benchmark", "the learner to stop")
    answer(running, "benchmark", "the learner to end")
    blocks = answer(roles.learner.blocks.remote(), "benchmark", "the learner's notes")
    within = [(step, at_s) for step, at_s in blocks if began_s <= at_s <= ended_s]
    (first, from_s), (last, until_s) = within[0], within[-1]
    return (last - first) / (until_s - from_s)


def measure(compile_mode: str, playing: str, arguments: Any) -> list[Measurement]:
    config, spec = configuration(compile_mode, playing)
    path = "compiled" if compile_mode == "required" else "eager"
    name = f"{path}, {PLAYING[playing]}"
    plans = run_plans(config)
    texts = plan_to_json(plans.learner), plan_to_json(plans.replay), spec.to_json()
    alone = ray.remote(num_cpus=0, max_restarts=0)(InProcess).remote(*texts)
    roles = start_roles(config, spec, n_actors=1)
    try:
        _, filler = start_producers(spec, [1, FILL_CHUNK])  # slot 0 is the actor's
        filled = filler.fill.remote(roles.shards[0], config.replay.capacity)
        answer(filled, "benchmark", "the memory to be filled", 300)
        assert answer(alone.path.remote(), "benchmark", "it", START_TIMEOUT_S) == path
        run = roles.actors[0].run.remote(roles.shards[0])
        pairs = []
        if playing == "held":  # until the limiter has seen the draws that the filling paid for
            over_ray(roles, WARM_UP_S[path])
        for _ in range(arguments.repeats):
            updates, seconds = answer(alone.train.remote(arguments.seconds), "benchmark", "it", 120)
            pairs.append((updates / seconds, over_ray(roles, arguments.seconds)))
        answer(roles.actors[0].request_stop.remote(), "benchmark", "the actor to stop")
        answer(roles.shards[0].open_gate.remote(), "benchmark", "the shard")
        answer(run, "benchmark", "the actor to end")
    finally:
        roles.end()
        ray.kill(alone, no_restart=True)
    about = {"actors": 1, "sampling": "prioritized", "batch": config.learner.batch_size}
    inside, over = zip(*pairs, strict=True)
    return [
        Measurement(f"{name}, in process", "updates/s", inside, about),
        Measurement(f"{name}, over Ray", "updates/s", over, about),
        Measurement(f"{name}, over Ray / in process", "", tuple(b / a for a, b in pairs), about),
    ]


def configuration(compile_mode: str, playing: str) -> tuple[Any, Any]:
    overrides: dict[str, object] = {
        **({} if playing == "held" else {"replay.samples_per_insert": None}),
        "runtime": "ray",
        "actors.count": 1,
        "replay.sampling": "prioritized",
        "learner.compile": compile_mode,
        "eval.period_learner_steps": 1_000_000_000,
        "run.max_learner_steps": 1_000_000_000,
    }
    return resolved_preset("cartpole", overrides)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--modes", nargs="+", choices=("off", "required"))
    parser.add_argument("--playing", nargs="+", choices=tuple(PLAYING), default=list(PLAYING))
    arguments = parser.parse_args()
    modes = arguments.modes or ["off", "required"]
    if "required" in modes and prebuild_preset("cartpole"):
        raise SystemExit("no compiled block: see the message above, or --modes off")
    cluster = connect(run_plans(configuration("off", "free")[0]).cluster)
    try:
        found = [
            one
            for mode in modes
            for playing in arguments.playing
            for one in measure(mode, playing, arguments)
        ]
    finally:
        disconnect(cluster)
    finish("learner_over_ray", arguments, found)


if __name__ == "__main__":
    main()
