"""The roles as Ray actors, in lockstep: the same calls as the local fleet, across processes.

Built by the composition root. Every wait has a timeout that says who waited for whom.
"""

from __future__ import annotations

from collections.abc import Mapping

from qfleet.cluster.roles import Waiting, answer
from qfleet.common.capture_stream import Streams
from qfleet.common.messages import decode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.types import (
    Array,
    EvaluationReport,
    EvaluationRequest,
    ParamsOffer,
    ReplayStats,
)
from qfleet.fleets.cuts import init_learner_params, restore_learner_and_replay
from qfleet.fleets.started_roles import StartedRoles

ACT_TIMEOUT_S = 600.0
LEARN_TIMEOUT_S = 1800.0
EVALUATE_TIMEOUT_S = 1800.0


class RayFleet(StartedRoles):
    """`Fleet` over Ray actors."""

    def _start(self, incarnation: int, waiting: Waiting) -> None:
        super()._start(incarnation, waiting)
        self.publish()

    def act(self, n_env_steps: int | None) -> None:
        """See `Fleet`; slots play at the same time, chunks enter in slot order."""
        refs = {
            s: actor.act.remote(n_env_steps, self._offer) for s, actor in self.roles.actors.items()
        }
        for slot in sorted(refs):
            data = answer(refs[slot], "driver", f"actor {slot} to play a round", ACT_TIMEOUT_S)
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
        return int(answer(ref, "driver", f"the learner's {n_blocks} blocks", LEARN_TIMEOUT_S))

    def publish(self) -> None:
        """See `Fleet`; every actor gets them with the next round's call."""
        self._offer = answer(self.roles.learner.publish.remote(), "driver", "new parameters")

    def evaluate(self, request: EvaluationRequest) -> EvaluationReport:
        """See `Fleet`."""
        published = ParamsOffer(*self._offer).latest
        ref = self.roles.evaluator.evaluate.remote(published, list(request))
        return EvaluationReport(*answer(ref, "driver", "an evaluation", EVALUATE_TIMEOUT_S))

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
