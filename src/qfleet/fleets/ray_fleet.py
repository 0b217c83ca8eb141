"""The roles as Ray actors, in lockstep: the same calls as the local fleet, across processes.

Built by the composition root. Every wait has a timeout that says who waited for whom.
"""

from __future__ import annotations

import collections
from contextlib import nullcontext
from typing import Any

from qfleet.cluster.roles import START_TIMEOUT_S, Roles, Waiting, answer
from qfleet.common.config import Config
from qfleet.common.messages import decode_snapshot, encode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.types import (
    Array,
    EnvironmentSpec,
    EpisodeSummary,
    EvaluationReport,
    EvaluationRequest,
    LearnerStats,
    ParamsSnapshot,
    ReplayStats,
)
from qfleet.common.wire import decode_parts
from qfleet.fleets.fleet import ActorReport, FleetReport

ACT_TIMEOUT_S = 600.0
LEARN_TIMEOUT_S = 1800.0
EVALUATE_TIMEOUT_S = 1800.0
PIECES_IN_FLIGHT = 2
CAPTURE_TIMEOUT_S = 600.0


class RayFleet:
    """`Fleet` over Ray actors; owned by the driver's main thread."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        *,
        run_id: str,
        incarnation: int,
        device: str,
        waiting: Waiting = nullcontext,
    ) -> None:
        self._config, self._spec = config, spec
        self.roles = Roles(config, spec, run_id=run_id, device=device)
        with self.roles.ended_on_error():
            self._begin(incarnation, waiting)

    def _begin(self, incarnation: int, waiting: Waiting) -> None:
        assert isinstance(self._config.actors.count, int)
        for slot in range(self._config.actors.count):
            self.roles.create_actor(slot, incarnation)
        with waiting():
            self.roles.wait_until_ready()
        learner = self.roles.learner
        answer(learner.set_shards.remote(self.roles.shards), "driver", "the learner")
        answer(
            learner.set_actors.remote(self.roles.actors), "driver", "the learner", START_TIMEOUT_S
        )
        answer(learner.publish.remote(), "learner", "every actor's first parameters")

    def act(self, n_env_steps: int | None) -> None:
        """See `Fleet`; slots play at the same time, chunks enter in slot order."""
        refs = {s: actor.act.remote(n_env_steps) for s, actor in self.roles.actors.items()}
        for slot in sorted(refs):
            data = answer(refs[slot], "driver", f"actor {slot} to play a round", ACT_TIMEOUT_S)
            if data is not None:
                shard = self.roles.shard_of(slot)
                answer(shard.insert.remote(data, False), "driver", f"actor {slot}'s replay shard")

    def shard_stats(self) -> list[ReplayStats]:
        """See `Fleet`."""
        refs = [shard.stats.remote() for shard in self.roles.shards]
        return [ReplayStats(*answer(ref, "driver", "replay counters")) for ref in refs]

    def learn(self, n_blocks: int) -> int:
        """See `Fleet`."""
        ref = self.roles.learner.learn.remote(n_blocks)
        return int(answer(ref, "driver", f"the learner's {n_blocks} blocks", LEARN_TIMEOUT_S))

    def publish(self) -> None:
        """See `Fleet`."""
        answer(self.roles.learner.publish.remote(), "driver", "every actor's acknowledgement")

    def evaluate(self, request: EvaluationRequest) -> EvaluationReport:
        """See `Fleet`."""
        ref = self.roles.evaluator.evaluate.remote(self._snapshot(), list(request))
        return EvaluationReport(*answer(ref, "driver", "an evaluation", EVALUATE_TIMEOUT_S))

    def _snapshot(self) -> bytes:
        data = answer(self.roles.learner.snapshot.remote(), "driver", "the learner's parameters")
        return bytes(data)

    def report(self) -> FleetReport:
        """See `Fleet`."""
        shards = [shard.report.remote() for shard in self.roles.shards]
        actors = [actor.ping.remote() for actor in self.roles.actors.values()]
        status = answer(self.roles.learner.status.remote(), "driver", "the learner's status")
        return make_report(
            status,
            [answer(ref, "driver", "replay counters") for ref in shards],
            [answer(ref, "driver", "an actor's counters") for ref in actors],
        )

    def params_bytes(self) -> bytes:
        """See `Fleet`."""
        arrays = decode_snapshot(self._snapshot()).arrays
        return encode_safetensors(arrays, self._config.network, self._spec)

    def fingerprint(self) -> str:
        """See `Fleet`."""
        ref = self.roles.learner.fingerprint.remote()
        return str(answer(ref, "driver", "the parameters' fingerprint"))

    def target_sync_log(self) -> dict[str, Any]:
        """See `Fleet`."""
        ref = self.roles.learner.target_sync_log.remote()
        return dict(answer(ref, "driver", "the log of target syncs"))

    def capture(self, replay_contents: bool) -> dict[str, bytes]:
        """See `Fleet`."""
        return {
            **capture_learner_and_replay(self.roles, replay_contents),
            **{
                f"actor-{slot}.qflt": answer(ref, "driver", f"actor {slot}'s state")
                for slot, ref in [(s, a.capture.remote()) for s, a in self.roles.actors.items()]
            },
        }

    def restore(self, files: dict[str, bytes]) -> int:
        """See `Fleet`."""
        restore_learner_and_replay(self.roles, files)
        dropped = 0
        for slot, actor in self.roles.actors.items():
            name = f"actor-{slot}.qflt"
            if name in files:
                ref = actor.restore.remote(files[name])
                dropped += int(answer(ref, "driver", f"actor {slot} to restore"))
        self.publish()
        return dropped

    def init_params(self, arrays: dict[str, Array]) -> None:
        """See `Fleet`."""
        init_learner_params(self.roles, arrays)
        self.publish()

    def close(self) -> None:
        """See `Fleet`."""
        self.roles.kill_all()


def capture_learner_and_replay(roles: Roles, replay_contents: bool) -> dict[str, bytes]:
    """The learner first, frozen between two blocks, then every shard."""
    ref = roles.learner.capture.remote()
    parts = answer(ref, "driver", "the learner's state", CAPTURE_TIMEOUT_S)
    files = {f"{name}.qflt": data for name, data in decode_parts(parts).items()}
    refs = [shard.freeze.remote(replay_contents) for shard in roles.shards]
    for index, (shard, ref) in enumerate(zip(roles.shards, refs, strict=True)):
        who = f"replay shard {index}'s state"
        answer(ref, "driver", who, CAPTURE_TIMEOUT_S)
        files[f"replay-{index}.qflt"] = _pull_frozen(shard, who)
    return files


def _pull_frozen(shard: Any, who: str) -> bytes:
    """What a shard has frozen, pulled piece by piece with two on their way."""
    pieces: list[bytes] = []
    waiting = collections.deque(shard.next_piece.remote() for _ in range(PIECES_IN_FLIGHT))
    while waiting:
        piece = answer(waiting.popleft(), "driver", who, CAPTURE_TIMEOUT_S)
        if piece is not None:
            pieces.append(piece)
            waiting.append(shard.next_piece.remote())
    *body, header = pieces
    return b"".join([header, *body])


def init_learner_params(roles: Roles, arrays: dict[str, Array]) -> None:
    """Give the learner another run's parameters before it starts."""
    data = encode_snapshot(ParamsSnapshot(0, 0, 0, False, arrays))
    answer(roles.learner.init_params.remote(data), "driver", "the learner to take parameters")


def restore_learner_and_replay(roles: Roles, files: dict[str, bytes]) -> None:
    """The inverse of `capture_learner_and_replay`."""
    ref = roles.learner.restore.remote(files["learner.qflt"], files["planner.qflt"])
    answer(ref, "driver", "the learner to restore", CAPTURE_TIMEOUT_S)
    refs = [
        shard.restore.remote(files[f"replay-{index}.qflt"])
        for index, shard in enumerate(roles.shards)
    ]
    for index, shard_ref in enumerate(refs):
        answer(shard_ref, "driver", f"replay shard {index} to restore", CAPTURE_TIMEOUT_S)


def make_report(
    status: dict[str, Any], shards: list[dict[str, Any]], actors: list[dict[str, Any]]
) -> FleetReport:
    """The roles' answers as one report."""
    return FleetReport(
        shards=[ReplayStats(*shard["stats"]) for shard in shards],
        learner=LearnerStats(*status["stats"]),
        actors=[make_actor_report(counters) for counters in actors],
        episodes=[EpisodeSummary(*fields) for shard in shards for fields in shard["episodes"]],
        learner_times=status["times"],
        shard_times=[shard["times"] for shard in shards],
        sample_age_s=status["sample_age_s"],
        learner_path=status["learner_path"],
        incidents=[
            f"a malformed chunk was refused {n} times: {reason}"
            for shard in shards
            for reason, n in shard["malformed_chunks"].items()
        ],
    )


def make_actor_report(counters: dict[str, Any]) -> ActorReport:
    """An actor's answer to `ping` as a report."""
    return ActorReport(
        counters["slot"],
        counters["env_steps"],
        counters["produced"],
        counters["unsent"],
        counters["params_learner_step"],
        counters["times"],
    )
