"""Ray shell of the learner: trains on what the feed gives, publishes, answers the driver.

Created by the composition root alone, which imports this without torch. `run` occupies the default
concurrency group; the `control` group answers meanwhile and waits for the end of a block where it
reads or changes the core (`_CutIn`). The learner talks to the shards alone: it knows no actor.

What the learner owns, and what its restore needs: networks, optimizer, counters and the log of
target syncs are in its capture, the split over shards in the planner's. The publisher's and the
feed's state is made anew from these.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from typing import Any

import ray

from qfleet.common import user_code
from qfleet.common.capture_stream import decode_capture, encode_capture, restoring
from qfleet.common.messages import decode_snapshot, encode_snapshot
from qfleet.common.params import params_sha256
from qfleet.common.plan_json import plan_from_json
from qfleet.common.role_place import read_logs, role_place
from qfleet.common.signals import die_of_sigterm
from qfleet.common.stage_clock import COPYING, LEARNING, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec, ReplaySample
from qfleet.common.wire import encode_parts
from qfleet.learner.block_runner import BlockPlanner, run_blocks
from qfleet.learner.fast.package_builds import PathUpgrade, Progress
from qfleet.learner.frames_choice import keeps_frames
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.remote_feed import ReplayFeed
from qfleet.learner.remote_publisher import SnapshotPublisher
from qfleet.learner.remote_replay import RemoteReplay

CONCURRENCY_GROUPS = {"control": 1, "evaluation": 1}
"""A thread that answers and one that waits until something is to be evaluated."""
RAY_OPTIONS: dict[str, Any] = {
    "concurrency_groups": CONCURRENCY_GROUPS,
    "max_restarts": 0,
    # A call that was lost must not hold up those behind it: Ray waits 30 s for a missing number.
    "allow_out_of_order_execution": True,
}
CUT_IN_PAUSE_S = 0.0005


class LearnerShell:
    """The learner's process; becomes a Ray actor through `remote_learner_class`."""

    def __init__(
        self, plan_json: str, spec_json: str, import_paths: list[str], device: str
    ) -> None:
        user_code.enter(import_paths)
        self._plan = plan = plan_from_json(LearnerPlan, plan_json)
        die_of_sigterm()
        limit_threads(plan.num_cpus)
        spec = EnvironmentSpec.from_json(spec_json)
        self._core = Learner(plan, spec, device)
        self._upgrade = PathUpgrade(plan, spec, device, self._core.path)
        self._planner = BlockPlanner(plan)
        self._shards: list[Any] = []
        self._keeps_frames = keeps_frames(device, plan.frame_bytes)
        self._replay: RemoteReplay | None = None
        """What lockstep draws from."""
        self._stop = threading.Event()
        self._has_begun = self._has_ended = False
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._cutting_in = 0
        self._clock = StageClock()
        self._publisher = SnapshotPublisher()
        self._feed = ReplayFeed(
            spec,
            self._planner,
            plan.max_blocks_per_request,
            self._stop,
            self._clock,
            by_place=self._keeps_frames,
        )

    # Control group: answers while `run` trains.

    @ray.method(concurrency_group="control")
    def ready(self) -> int:
        """This process's id, once torch and the networks are there."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def place(self) -> dict[str, Any]:
        """See `role_place`."""
        return role_place(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")
    def written(self, paths: list[str], offsets: list[int]) -> list[bytes]:
        """What its own log files hold from there on."""
        return read_logs(paths, offsets)

    @ray.method(concurrency_group="control")
    def replace_shard(self, index: int, shard: Any, draw: bool) -> None:
        """A new process serves shard `index`: it is told of the parameters and drawn from.

        Until it is called with `draw`, the other shards are drawn from alone.
        """
        self._shards[index] = shard
        self._publisher.replace_shard(index, shard)
        if draw:
            self._feed.replace_shard(index, shard)

    @ray.method(concurrency_group="control")
    def let_rest(self, shards: list[int]) -> None:
        """Draw from the other shards alone; `status` tells it."""
        self._feed.let_rest(shards)

    @ray.method(concurrency_group="control")
    def request_stop(self) -> None:
        """End `run` after the current block, and `await_evaluation` at once."""
        self._stop.set()
        self._publisher.close()

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """Counters; does not wait for the end of a block."""
        return {
            "pid": os.getpid(),
            "stats": list(self._core.stats()),
            "learner_path": self._core.path,
            "times": dict(self._clock.seconds),
            "sample_age_s": self._feed.sample_age_s,
            "blocks_per_request": self._feed.blocks_per_request.size,
            "resting": sorted(self._feed.resting),
            "has_begun": self._has_begun,
            "has_ended": self._has_ended,
        }

    @ray.method(concurrency_group="evaluation")
    def await_evaluation(self, timeout_s: float, after_version: int) -> tuple[int, Any] | None:
        """Version and payload (`ParamsOffer`) of the newest snapshot to evaluate, if a newer one.

        None when none falls due in time.
        """
        return self._publisher.await_evaluation(timeout_s, after_version)

    @ray.method(concurrency_group="control")
    def capture(self) -> bytes:
        """Learner, planner and online parameters, frozen between two blocks."""
        with _CutIn(self):
            return self._capture()

    def _capture(self) -> bytes:
        parts = {
            "learner": b"".join(encode_capture(self._core.capture())),
            "planner": b"".join(encode_capture(self._planner.capture())),
        }
        return encode_parts(parts)

    @ray.method(concurrency_group="control")
    def snapshot(self) -> bytes:
        """The online network as it is, without a new version."""
        with _CutIn(self):
            return encode_snapshot(self._core.latest_snapshot())

    @ray.method(concurrency_group="control")
    def fingerprint(self) -> str:
        """`params_sha256` of the online network."""
        with _CutIn(self):
            return params_sha256(self._core.params())

    @ray.method(concurrency_group="control")
    def target_syncs(self) -> list[list[int]]:
        """(learner step, version) of all hard syncs."""
        with _CutIn(self):
            return [list(event) for event in self._core.target_syncs]

    # Default group.

    def restore(self, learner: bytes, planner: bytes) -> None:
        """Continue from captures; call before `run` or `learn`."""
        with restoring("the learner's state"):
            self._core.restore(decode_capture(learner))
            self._planner.restore(decode_capture(planner))

    def init_params(self, data: bytes) -> None:
        """Begin with the parameters in a snapshot message; call before `run` or `learn`."""
        self._core.init_params(decode_snapshot(data).arrays)

    def keep_versions_above(self, version: int) -> None:
        """After a roll-back: new versions are higher than every one given out before."""
        self._core.keep_versions_above(version)

    def set_shards(self, shards: list[Any]) -> None:
        """The replay shards, in order."""
        self._shards, self._replay = list(shards), None
        self._feed.set_shards(shards)
        self._publisher.set_shards(shards)

    def learn(self, n_blocks: int) -> int:
        """Lockstep: `n_blocks` blocks one after the other; returns the learner step."""
        if self._replay is None:
            self._replay = RemoteReplay(self._shards, by_place=self._keeps_frames)
        run_blocks(self._core, self._planner, self._replay, n_blocks, self._clock)
        return self._core.learner_steps

    def publish(self) -> list[Any]:
        """Lockstep: the `ParamsOffer` of the next round, as a list."""
        self._hand_over()
        return list(self._publisher.offer())

    def _hand_over(self, *, evaluate: bool = False) -> None:
        """Give the publisher the parameters of now, under a version of their own."""
        if not self._core.is_published:
            self._core.publish()
        self._publisher.publish(self._core.take_snapshots(), evaluate=evaluate)

    def run(self) -> int:
        """Train until `request_stop` or the budget; returns the learner step.

        Called again, because the first call or its answer was lost or late, it says the same.
        """
        if not (self._has_begun or self._stop.is_set()):
            self._has_begun = True
            try:
                self._run()
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._core.learner_steps

    def _run(self) -> None:
        self._hand_over()
        self._publisher.start()
        try:
            with closing(self._feed.blocks(self._core)) as blocks:
                while not self._is_over():
                    sample = next(blocks, None)  # None: stopped meanwhile
                    while self._cutting_in:
                        time.sleep(CUT_IN_PAUSE_S)
                    if sample is not None:
                        with self._lock:
                            self._train(sample)
        finally:
            self._publisher.stop()
            self._upgrade.close()
        self._has_ended = True

    def _is_over(self) -> bool:
        most = self._plan.max_learner_steps
        return self._stop.is_set() or (most is not None and self._core.learner_steps >= most)

    def _train(self, sample: ReplaySample) -> None:
        core, clock, period = self._core, self._clock, self._plan.eval_period_learner_steps
        before = core.learner_steps
        clock.start()
        errors = core.update_block(sample)
        clock.lap(LEARNING)
        self._feed.give_back(sample, errors)
        # Only published versions are evaluated.
        evaluate = before // period < core.learner_steps // period
        if core.publish_due or evaluate:
            self._hand_over(evaluate=evaluate)
        elif core.has_snapshots:  # a target sync
            self._hand_over()
        clock.lap(COPYING)
        update_s = clock.seconds[LEARNING] + clock.seconds[COPYING]
        progress = Progress(time.perf_counter(), core.learner_steps, core.fleet_env_steps, update_s)
        if self._upgrade.poll(progress):
            core.take_package()


class _CutIn:
    """Holds the learner between two blocks while a control method reads or changes the core."""

    def __init__(self, shell: LearnerShell) -> None:
        self._shell = shell

    def __enter__(self) -> None:
        self._shell._cutting_in += 1
        self._shell._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._shell._cutting_in -= 1
        self._shell._lock.release()


def remote_learner_class() -> Any:
    """The Ray actor class of `LearnerShell`."""
    return ray.remote(**RAY_OPTIONS)(LearnerShell)
