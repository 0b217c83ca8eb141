"""Ray shell of the learner: the asynchronous loop, publishing, and answers to the driver.

Created by the composition root alone, which imports this without torch. `run` occupies the default
concurrency group; the `control` group answers meanwhile and cuts in only between two blocks. The
learner talks to the shards and the actors itself; the driver owns all of them.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from typing import Any, NamedTuple

import ray

from qfleet.common import user_code
from qfleet.common.adaptive_size import AdaptiveSize
from qfleet.common.capture_stream import decode_capture, encode_capture, restoring
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.inline_pieces import join, pieces_for
from qfleet.common.messages import (
    decode_shard_sample,
    decode_snapshot,
    encode_priority_update,
    encode_snapshot,
    shard_sample_bytes,
)
from qfleet.common.params import params_sha256
from qfleet.common.plan_json import plan_from_json
from qfleet.common.stage_clock import COPYING, LEARNING, WAIT, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import (
    EnvironmentSpec,
    ReplaySample,
    ReplayStats,
    ShardSample,
)
from qfleet.common.wire import encode_parts
from qfleet.learner.block_runner import BlockPlanner, run_blocks
from qfleet.learner.fast.package_builds import PathUpgrade, Progress
from qfleet.learner.learner import Learner
from qfleet.learner.plan import REQUESTS_IN_FLIGHT, LearnerPlan
from qfleet.learner.remote_broadcast import SnapshotBroadcaster
from qfleet.learner.remote_replay import RemoteReplay
from qfleet.learner.sampling import slices

ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.2
CONCURRENCY_GROUPS = {"control": 1, "evaluation": 1}
"""A thread that answers and one that waits until something is to be evaluated."""
ASKING_TO_GROW = 0.05
"""A learner that spends more than this share of its time on asking and waiting asks for more blocks
at once."""


class _BlockRequest(NamedTuple):
    """The draws of one or more blocks on their way: per shard the number and the reference."""

    stats: list[ReplayStats]
    splits: list[list[int]]
    draws: dict[int, int]
    refs: dict[int, list[Any]]


class LearnerShell:
    """The learner's process; becomes a Ray actor through `remote_learner_class`."""

    def __init__(
        self,
        plan_json: str,
        spec_json: str,
        import_paths: list[str],
        device: str,
    ) -> None:
        user_code.enter(import_paths)
        plan = plan_from_json(LearnerPlan, plan_json)
        limit_threads(plan.num_cpus)
        self._eval_period = plan.eval_period_learner_steps
        self._max_steps = plan.max_learner_steps
        spec = EnvironmentSpec.from_json(spec_json)
        self._spec = spec
        self._core = Learner(plan, spec, device)
        self._upgrade = PathUpgrade(plan, spec, device, self._core.path)
        self._planner = BlockPlanner(plan)
        self._broadcaster = SnapshotBroadcaster()
        self._shards: list[Any] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._cutting_in = 0
        self._for_evaluation: bytes | None = None
        self._evaluation_due = threading.Event()
        self._priorities: dict[int, list[bytes]] = {}
        """Messages of the blocks since the last request, by shard: sent together."""
        self._priority_refs: collections.deque[Any] = collections.deque()
        self._latest_stats: list[ReplayStats] = []
        self._clock = StageClock()
        self._blocks_per_request = AdaptiveSize(
            1,
            plan.max_blocks_per_request,
            grow_above=ASKING_TO_GROW,
            shrink_below=ASKING_TO_GROW / 10,
            grow_after=4,
            shrink_after=100,
        )
        self._sample_age_s = 0.0

    # Control group: answers while `run` trains.

    @ray.method(concurrency_group="control")
    def ready(self) -> int:
        """This process's id, once torch and the networks are there."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def set_actors(self, actors: dict[int, Any]) -> None:
        """Replace the set of actors and send them what a newcomer needs."""
        with _CutIn(self):
            self._broadcaster.set_actors(actors)
            self._core.take_snapshots()
            for snapshot in self._core.current_snapshots():
                self._broadcaster.send(snapshot)

    @ray.method(concurrency_group="control")
    def request_stop(self) -> None:
        """End `run` after the current block, and `await_evaluation` at once."""
        self._stop.set()
        self._evaluation_due.set()

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """Counters."""
        return {
            "pid": os.getpid(),
            "stats": list(self._core.stats()),
            "learner_path": self._core.path,
            "times": dict(self._clock.seconds),
            "sample_age_s": self._sample_age_s,
            "skipped_snapshots": self._broadcaster.skipped,
            "blocks_per_request": self._blocks_per_request.size,
        }

    @ray.method(concurrency_group="evaluation")
    def await_evaluation(self, timeout_s: float) -> bytes | None:
        """The newest snapshot that is due for an evaluation; None when none falls due in time."""
        if not self._evaluation_due.wait(timeout_s):
            return None
        self._evaluation_due.clear()
        waiting, self._for_evaluation = self._for_evaluation, None
        return waiting

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
            return encode_snapshot(self._core.current_snapshots()[-1])

    @ray.method(concurrency_group="control")
    def fingerprint(self) -> str:
        """`params_sha256` of the online network."""
        with _CutIn(self):
            return params_sha256(self._core.params())

    @ray.method(concurrency_group="control")
    def target_sync_log(self) -> dict[str, Any]:
        """Versions of all hard syncs as done here and as acknowledged per actor slot."""
        with _CutIn(self):
            self._broadcaster.collect(timeout_s=1.0)
            return {
                "syncs": [list(event) for event in self._core.target_syncs],
                "acknowledged": self._broadcaster.acknowledged_target_syncs,
            }

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
        self._shards = shards

    def learn(self, n_blocks: int) -> int:
        """Lockstep: `n_blocks` blocks one after the other; returns the learner step."""
        replay = RemoteReplay(self._shards)
        run_blocks(self._core, self._planner, replay, n_blocks, self._clock)
        return self._core.learner_steps

    def publish(self) -> int:
        """Lockstep: publish and wait until every actor has acknowledged; returns the version."""
        if not self._core.is_published:
            self._core.publish()
        for snapshot in self._core.take_snapshots():
            self._broadcaster.send(snapshot)
        self._broadcaster.collect(timeout_s=ANSWER_TIMEOUT_S)
        silent = self._broadcaster.silent_slots
        if silent:
            raise WaitTimeoutError(
                f"learner waited {ANSWER_TIMEOUT_S:.0f} s for actors {silent} to acknowledge "
                "new parameters"
            )
        return self._core.stats().params_version

    def run(self) -> int:
        """Train until `request_stop` or the budget; returns the learner step."""
        try:
            return self._run()
        finally:
            self._upgrade.close()

    def _run(self) -> int:
        replay = RemoteReplay(self._shards)
        self._latest_stats = self._wait_for_minimum(replay)
        requests: collections.deque[_BlockRequest] = collections.deque()
        while not self._stop.is_set() and not self._budget_spent():
            asked_from_s = time.perf_counter()
            while len(requests) < REQUESTS_IN_FLIGHT:
                requests.append(self._request())
            parts = self._receive(requests[0])
            if parts is None:
                continue
            request = requests.popleft()
            got_at_s = time.perf_counter()
            for block in slices(parts, request.splits):
                while self._cutting_in:
                    time.sleep(0.0005)
                if self._stop.is_set() or self._budget_spent():
                    break
                with self._lock:
                    self._train(request.stats, block)
            self._send_priorities()
            held_s = max(part.held_s for part in parts)
            asking_s = max(0.0, got_at_s - asked_from_s - held_s)
            self._blocks_per_request.observe(asking_s, time.perf_counter() - got_at_s)
        return self._core.learner_steps

    def _budget_spent(self) -> bool:
        return self._max_steps is not None and self._core.learner_steps >= self._max_steps

    def _wait_for_minimum(self, replay: RemoteReplay) -> list[ReplayStats]:
        """Until some shard holds anything: before that, draws cannot be split by mass."""
        while True:
            stats = replay.stats()
            if self._stop.is_set() or any(s.size > 0 for s in stats):
                return stats
            time.sleep(0.01)

    def _request(self) -> _BlockRequest:
        stats = self._latest_stats
        splits = [self._planner.split(stats) for _ in range(self._blocks_per_request.size)]
        per_shard = [sum(draws) for draws in zip(*splits, strict=True)]
        draws = {shard: n for shard, n in enumerate(per_shard) if n}
        refs = {shard: self._ask(shard, n) for shard, n in draws.items()}
        return _BlockRequest(stats, splits, draws, refs)

    def _ask(self, shard: int, n_draws: int) -> list[Any]:
        """The references of a shard's answer, which travels inside the call unless it is large."""
        n_pieces = pieces_for(shard_sample_bytes(self._spec, n_draws))
        method = self._shards[shard].sample.options(num_returns=n_pieces)
        refs = method.remote(n_draws, True, n_pieces)
        return [refs] if n_pieces == 1 else list(refs)

    def _receive(self, request: _BlockRequest) -> list[ShardSample] | None:
        """The request's parts; None when stopped, or while a shard's limiter holds it back."""
        started = time.perf_counter()
        self._clock.start()
        waiting = [refs[0] for refs in request.refs.values()]  # a call's values come together
        while waiting and not self._stop.is_set():
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            waited = time.perf_counter() - started
            if waiting and waited > ANSWER_TIMEOUT_S:
                raise WaitTimeoutError(f"learner waited {waited:.0f} s for a replay shard's sample")
        self._clock.lap(WAIT)
        if waiting:
            return None
        answers = {s: ray.get(refs, timeout=ANSWER_TIMEOUT_S) for s, refs in request.refs.items()}
        blocked = [shard for shard, pieces in answers.items() if pieces[0] is None]
        for shard in blocked:
            request.refs[shard] = self._ask(shard, request.draws[shard])
        if blocked:
            return None
        parts = [decode_shard_sample(join(pieces)) for pieces in answers.values()]
        self._clock.lap(COPYING)
        return parts

    def _train(self, stats: list[ReplayStats], parts: list[ShardSample]) -> None:
        clock = self._clock
        clock.start()
        for part in parts:
            self._latest_stats = [*self._latest_stats]
            self._latest_stats[part.shard] = part.stats
            self._sample_age_s = part.mean_age_s
        self._core.fleet_env_steps = sum(s.env_steps for s in self._latest_stats)
        before = self._core.learner_steps
        sample: ReplaySample = self._planner.assemble(parts, stats, self._core)
        clock.lap(COPYING)
        errors = self._core.update_block(sample)
        clock.lap(LEARNING)
        for shard, update in self._planner.priority_updates(sample, errors).items():
            self._priorities.setdefault(shard, []).append(encode_priority_update(update))
        evaluate = before // self._eval_period < self._core.learner_steps // self._eval_period
        self._publish_due(evaluate)
        if evaluate:
            self._for_evaluation = encode_snapshot(self._core.current_snapshots()[-1])
            self._evaluation_due.set()
        clock.lap(COPYING)
        core, update_s = self._core, clock.seconds[LEARNING] + clock.seconds[COPYING]
        progress = Progress(time.perf_counter(), core.learner_steps, core.fleet_env_steps, update_s)
        if self._upgrade.poll(progress):
            core.take_package()

    def _send_priorities(self) -> None:
        """One call for each shard; the messages stay apart, so that each travels inside it."""
        for shard, messages in self._priorities.items():
            self._priority_refs.append(self._shards[shard].update_priorities.remote(*messages))
        self._priorities.clear()
        while len(self._priority_refs) > 2 * REQUESTS_IN_FLIGHT * len(self._shards):
            ray.get(self._priority_refs.popleft(), timeout=ANSWER_TIMEOUT_S)

    def _publish_due(self, evaluate: bool) -> None:
        """Publish on the period, and for an evaluation: only published versions are evaluated."""
        if self._core.publish_due or (evaluate and not self._core.is_published):
            self._core.publish()
        for snapshot in self._core.take_snapshots():
            self._broadcaster.send(snapshot)


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
    options: dict[str, Any] = {"concurrency_groups": CONCURRENCY_GROUPS, "max_restarts": 0}
    return ray.remote(**options)(LearnerShell)
