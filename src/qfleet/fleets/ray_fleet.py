"""The roles as Ray actors, in lockstep: the same calls as the local fleet, across processes.

Built by the composition root. Every wait has a timeout that says who waited for whom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

from qfleet.cluster.answers import START_TIMEOUT_S, answer, ask
from qfleet.cluster.progress_watch import ProgressWatch
from qfleet.cluster.roles import actor_name
from qfleet.common.capture_stream import Streams
from qfleet.common.messages import decode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.reports import EvaluationReport, EvaluationRequest, LearnerStats
from qfleet.common.types import Array, ParamsOffer, ReplayStats
from qfleet.fleets.cuts import init_learner_params, restore_learner_and_replay
from qfleet.fleets.started_roles import StartedRoles

ROUND_TIMEOUT_S = 24 * 3600.0
"""Of one call of a round; who hangs is noticed long before by the watch beside it."""
LEARNER_TIMEOUT_S = 600.0
"""Longer than any block of updates and its compilation should take."""


class RayFleet(StartedRoles):
    """`Fleet` over Ray actors."""

    def _start(self, incarnation: int) -> None:
        super()._start(incarnation)
        players = {actor_name(s, incarnation): a for s, a in self.roles.actors.items()}
        players[self.roles.evaluator_name] = self.roles.evaluator
        pings = {name: handle.ping.remote(True) for name, handle in players.items()}
        for name, handle in players.items():
            call, who = partial(handle.ping.remote, True), f"{name} to start"
            told = ask(call, "driver", who, START_TIMEOUT_S, first=pings[name])
            self.roles.tells_place(name, handle, told["place"])
        self.roles.places.check_versions()
        self.publish()

    def act(self, n_env_steps: int | None) -> None:
        """See `Fleet`; slots play at the same time, chunks enter in slot order."""
        refs = {
            s: actor.act.remote(n_env_steps, self._offer) for s, actor in self.roles.actors.items()
        }
        for slot in sorted(refs):
            data = answer(
                refs[slot],
                "driver",
                f"actor {slot} to play a round",
                ROUND_TIMEOUT_S,
                self._stepping(self.roles.actors[slot].ping, f"actor {slot}", "env_steps"),
            )
            if data is not None:
                shard = self.roles.shard_of(slot)
                stored = shard.insert.remote(data, wait=False)
                answer(stored, "driver", f"actor {slot}'s replay shard")

    def shard_stats(self) -> list[ReplayStats]:
        """See `Fleet`."""
        refs = [shard.stats.remote() for shard in self.roles.shards]
        return [ReplayStats(*answer(ref, "driver", "replay counters")) for ref in refs]

    def learn(self, n_blocks: int) -> int:
        """See `Fleet`."""
        ref = self.roles.learner.learn.remote(n_blocks)
        who = f"the learner's {n_blocks} blocks"
        return int(answer(ref, "driver", who, ROUND_TIMEOUT_S, self._learning()))

    def publish(self) -> None:
        """See `Fleet`; every actor gets them with the next round's call."""
        self._offer = answer(self.roles.learner.publish.remote(), "driver", "new parameters")

    def evaluate(self, request: EvaluationRequest) -> EvaluationReport:
        """See `Fleet`."""
        published = ParamsOffer(*self._offer).latest
        ref = self.roles.evaluator.evaluate.remote(published, list(request))
        watch = self._stepping(self.roles.evaluator.ping, "the evaluator", "steps")
        return EvaluationReport(*answer(ref, "driver", "an evaluation", ROUND_TIMEOUT_S, watch))

    def _stepping(self, ping: Any, who: str, counter: str) -> ProgressWatch:
        """Watches a role whose environments are to step."""
        limit_s = self._plans.fleet.step_timeout_s
        remedy = f": an environment hangs in a step or reset (run.step_timeout_s = {limit_s:g})"
        return ProgressWatch(ping.remote, who, itemgetter(counter), limit_s, remedy)

    def _learning(self) -> Callable[[], None]:
        """Watches the learner and the shards that it asks."""
        learner = ProgressWatch(
            self.roles.learner.status.remote,
            "the learner",
            lambda status: LearnerStats(*status["stats"]).learner_steps,
            LEARNER_TIMEOUT_S,
        )
        shards = [
            ProgressWatch(shard.ready.remote, f"replay shard {index}")
            for index, shard in enumerate(self.roles.shards)
        ]

        def watch() -> None:
            for role in (learner, *shards):
                role()

        return watch

    def _snapshot(self) -> bytes:
        data = answer(self.roles.learner.snapshot.remote(), "driver", "the learner's parameters")
        return bytes(data)

    def params_bytes(self) -> bytes:
        """See `Fleet`."""
        arrays = decode_snapshot(self._snapshot()).arrays
        return encode_safetensors(arrays, self._plans.learner.network, self._spec)

    def capture(self, replay_contents: bool) -> Streams:
        """See `Fleet`."""
        files = super().capture(replay_contents)
        refs = {slot: actor.capture.remote() for slot, actor in self.roles.actors.items()}
        for slot, ref in refs.items():
            files[f"actor-{slot}.qflt"] = [answer(ref, "driver", f"actor {slot}'s state")]
        return files

    def restore(self, files: Mapping[str, memoryview]) -> int:
        """See `Fleet`."""
        restore_learner_and_replay(self.roles, files)
        dropped = 0
        for slot, actor in self.roles.actors.items():
            name = f"actor-{slot}.qflt"
            if name in files:
                ref = actor.restore.remote(bytes(files[name]))
                dropped += int(answer(ref, "driver", f"actor {slot} to restore"))
        self.publish()
        return dropped

    def init_params(self, arrays: dict[str, Array]) -> None:
        """See `Fleet`."""
        init_learner_params(self.roles, arrays)
        self.publish()
