"""All roles in this process, one thread, in a fixed order: the local runtime.

Built by the composition root. Chunks pass as objects, not as bytes; the numbers in them are the
same. Ray is not imported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qfleet.actors.build import build_actor
from qfleet.actors.confirmation import run_request
from qfleet.actors.evaluator import Evaluator
from qfleet.cluster.plan import RunPlans
from qfleet.common.capture_stream import (
    Streams,
    decode_capture,
    encode_capture,
    restoring,
)
from qfleet.common.params import encode_safetensors, params_sha256
from qfleet.common.q_functions import QFunctions
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.stage_clock import REPLAY, SAMPLING, StageClock
from qfleet.common.threads import limit_threads
from qfleet.common.types import (
    Array,
    EnvironmentSpec,
    EpisodeSummary,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
)
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.learner.block_runner import BlockPlanner, run_blocks
from qfleet.learner.frame_receipts import FrameReceipts
from qfleet.learner.frames_choice import keeps_frames
from qfleet.learner.learner import Learner
from qfleet.replay_server.build import build_shard
from qfleet.replay_server.replay_shard import ReplayShard


class LocalReplay:
    """`ReplayReader` over shards in this process; wall time serves sample ages only."""

    def __init__(self, shards: list[ReplayShard], *, by_place: bool = False) -> None:
        self._shards = shards
        self._receipts = [FrameReceipts(by_place=by_place) for _ in shards]
        self.clocks = [StageClock() for _ in shards]
        self.sample_age_s = 0.0

    def stats(self) -> list[ReplayStats]:
        """See `ReplayReader`."""
        return [shard.stats() for shard in self._shards]

    def sample(self, draws: list[int]) -> list[ShardSample]:
        """See `ReplayReader`."""
        now_s = time.time()
        parts = []
        for index, n in enumerate(draws):
            if n:
                receipts, clock = self._receipts[index], self.clocks[index]
                clock.start()
                parts.append(self._shards[index].sample(n, now_s, reader=receipts.reader()))
                receipts.take(parts[-1])  # the learner trains on it before it draws again
                clock.lap(SAMPLING)
        self.sample_age_s = parts[0].mean_age_s
        return parts

    def update_priorities(self, updates: dict[int, PriorityUpdate]) -> None:
        """See `ReplayReader`."""
        for shard, update in updates.items():
            self.clocks[shard].start()
            self._shards[shard].update_priorities(update)
            self.clocks[shard].lap(REPLAY)

    def insert(self, shard: int, chunk: TransitionChunk) -> None:
        """A chunk for that shard; lockstep decides when, so the rate limiter is not asked."""
        self.clocks[shard].start()
        self._shards[shard].insert(chunk, time.time())
        self.clocks[shard].lap(REPLAY)


class LocalFleet:
    """`Fleet` in one process; owned by one thread."""

    def __init__(
        self, plans: RunPlans, spec: EnvironmentSpec, *, run_id: str, incarnation: int, device: str
    ) -> None:
        self._spec, self._network = spec, plans.learner.network
        self._learner = Learner(plans.learner, spec, device)
        # After PyTorch's library is loaded, so that the limit reaches it; the actors' networks are
        # too small for BLAS to use more than one thread.
        limit_threads(plans.learner.num_cpus)
        self._planner = BlockPlanner(plans.learner)
        self._shards = [
            build_shard(plans.replay, spec, run_id=run_id, shard=shard)
            for shard in range(plans.fleet.shards)
        ]
        self._replay = LocalReplay(
            self._shards, by_place=keeps_frames(device, plans.learner.frame_bytes)
        )
        self._actors = [
            build_actor(plans.actor, spec, run_id=run_id, slot=slot, incarnation=incarnation)
            for slot in range(plans.fleet.actors)
        ]
        self._q_functions = QFunctions(self._network, spec)
        self._evaluator = Evaluator(
            plans.evaluator.env,
            plans.evaluator.epsilon,
            max_steps_per_episode=plans.evaluator.max_episode_steps,
        )
        self._incarnation = incarnation
        self._episodes: list[EpisodeSummary] = []
        self._learn_clock = StageClock()
        self._deliver()

    def _deliver(self) -> None:
        for snapshot in self._learner.take_snapshots():
            for actor in self._actors:
                actor.set_params(snapshot)

    def progress(self) -> tuple[int, ...]:
        """Changes whenever a step is played or learned."""
        played = [actor.env_steps for actor in self._actors]
        return (*played, self._evaluator.steps, self._learner.learner_steps)

    def act(self, n_env_steps: int | None) -> None:
        """See `Fleet`."""
        for slot, actor in enumerate(self._actors):
            if n_env_steps is None:
                actor.act_episode()
            else:
                actor.act_steps(n_env_steps)
            chunk = actor.take_chunk()
            if chunk is not None:
                self._replay.insert(slot % len(self._shards), chunk)
                self._episodes.extend(chunk.episodes)

    def shard_stats(self) -> list[ReplayStats]:
        """See `Fleet`."""
        return self._replay.stats()

    def learn(self, n_blocks: int) -> int:
        """See `Fleet`."""
        run_blocks(self._learner, self._planner, self._replay, n_blocks, self._learn_clock)
        return self._learner.learner_steps

    def publish(self) -> None:
        """See `Fleet`."""
        if not self._learner.is_published:
            self._learner.publish()
        self._deliver()

    def evaluate(self, request: EvaluationRequest) -> EvaluationReport:
        """See `Fleet`."""
        snapshot = self._learner.latest_snapshot()
        q_function = self._q_functions.of(snapshot.arrays)
        return run_request(self._evaluator, q_function, snapshot, request)

    def report(self) -> FleetReport:
        """See `Fleet`."""
        episodes, self._episodes = self._episodes, []
        return FleetReport(
            shards=self._replay.stats(),
            learner=self._learner.stats(),
            actors=[
                ActorReport(
                    slot,
                    actor.env_steps,
                    actor.produced,
                    actor.pending_rows,
                    actor.params_learner_step,
                    dict(actor.clock.seconds),
                    actor.episodes,
                    incarnation=self._incarnation,
                )
                for slot, actor in enumerate(self._actors)
            ],
            episodes=episodes,
            learner_times=dict(self._learn_clock.seconds),
            arrivals=[arrival for shard in self._shards for arrival in shard.arrivals],
            slots=[slot for shard in self._shards for slot in shard.slots.stats()],
            shard_times=[dict(clock.seconds) for clock in self._replay.clocks],
            is_one_process=True,
            sample_age_s=self._replay.sample_age_s,
            learner_path=self._learner.path,
        )

    def params_bytes(self) -> bytes:
        """See `Fleet`."""
        return encode_safetensors(self._learner.params(), self._network, self._spec)

    def fingerprint(self) -> str:
        """See `Fleet`."""
        return params_sha256(self._learner.params())

    def target_sync_log(self) -> dict[str, Any]:
        """See `Fleet`."""
        syncs = [list(event) for event in self._learner.target_syncs]
        acted: dict[int, list[int]] = {}
        for shard in self._shards:
            acted |= shard.slots.targets_acted()
        return {"syncs": syncs, "acknowledged": dict(sorted(acted.items()))}

    def capture(self, replay_contents: bool) -> Streams:
        """See `Fleet`."""
        files: Streams = {
            "learner.qflt": encode_capture(self._learner.capture()),
            "planner.qflt": encode_capture(self._planner.capture()),
        }
        for index, shard in enumerate(self._shards):
            files[f"replay-{index}.qflt"] = shard.freeze(replay_contents).pieces()
        for slot, actor in enumerate(self._actors):
            files[f"actor-{slot}.qflt"] = encode_capture(actor.capture())
        return files

    def restore(self, files: Mapping[str, memoryview]) -> int:
        """See `Fleet`."""
        with restoring("the learner's state"):
            self._learner.restore(decode_capture(files["learner.qflt"]))
            self._planner.restore(decode_capture(files["planner.qflt"]))
        for index, shard in enumerate(self._shards):
            restored = shard.restoring()
            restored.take(files[f"replay-{index}.qflt"])
            restored.end()
        for slot, actor in enumerate(self._actors):
            name = f"actor-{slot}.qflt"
            if name in files:
                with restoring(f"the state of actor {slot}"):
                    actor.restore(decode_capture(files[name]))
        self._deliver()
        return sum(actor.dropped_transitions for actor in self._actors)

    def init_params(self, arrays: dict[str, Array]) -> None:
        """See `Fleet`."""
        self._learner.init_params(arrays)
        self._deliver()

    def close(self) -> None:
        """See `Fleet`."""
        for actor in self._actors:
            actor.close()
        self._evaluator.close()
