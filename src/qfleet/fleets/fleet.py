"""What the round loop needs of a set of roles, wherever they run.

Two implementations: `local_fleet.py` (this process) and `ray_fleet.py` (Ray actors). Both hold the
same cores, so equal calls give equal bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qfleet.common.capture_stream import Streams
from qfleet.common.reports import EvaluationReport, EvaluationRequest, LearnerStats
from qfleet.common.types import Array, EpisodeSummary, ReplayStats, SlotStats
from qfleet.replay_server.arrivals import Arrival


class Incident(Protocol):
    """Tells a user of something, with the whole text of what was raised if anything was."""

    def __call__(self, text: str, whole_text: str = "") -> None:
        """See `Session.incident`."""
        ...


@dataclass(frozen=True)
class ActorReport:
    """Counters of one actor incarnation."""

    slot: int
    env_steps: int
    produced: int
    """Transitions that this incarnation has numbered."""
    unsent: int
    """Of those, not yet acknowledged by a shard."""
    params_learner_step: int
    times: dict[str, float] = field(default_factory=dict)
    """Seconds per stage (`common.stage_clock`) and of waiting, since its start."""
    episodes: int = 0
    """Episodes that this incarnation has ended."""
    is_stepping: bool = False
    """Whether its environments were in a step or reset when it told."""
    incarnation: int = 0
    is_final: bool = False
    """Whether it told this after its last step."""


@dataclass(frozen=True)
class FleetReport:
    """The roles' counters at one moment, and the episodes that ended since the previous report."""

    shards: list[ReplayStats]
    learner: LearnerStats
    actors: list[ActorReport]
    episodes: list[EpisodeSummary] = field(default_factory=list)
    learner_times: dict[str, float] = field(default_factory=dict)
    """Seconds per stage and of waiting, since the learner's start."""
    shard_times: list[dict[str, float]] = field(default_factory=list)
    """Of each shard: seconds per stage, and how long its limiter held calls back."""
    is_one_process: bool = False
    slots: list[SlotStats] = field(default_factory=list)
    """What the shards know of each actor slot."""
    ended: list[ActorReport] = field(default_factory=list)
    """The last that was heard of actors that are gone."""
    arrivals: list[Arrival] = field(default_factory=list)
    """What the shards got of each incarnation's transitions."""
    limiters: list[str] = field(default_factory=list)
    """Of each shard on Ray: what its rate limiter lets through, in words."""
    sample_age_s: float = 0.0
    learner_path: str = "eager"
    """`eager`, `compiled` or `cuda graph`: how the newest block was computed."""
    incidents: list[str] = field(default_factory=list)
    hosts: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Host and process by role, of roles on Ray that have told."""
    absent: dict[str, str] = field(default_factory=dict)
    """Roles that are to be there and are not, each with what it waits for."""
    resting: list[int] = field(default_factory=list)
    """Shards that no actor writes to: the learner draws from the others."""
    evaluator_steps: int = 0
    """Vector steps of the newest evaluator."""

    @property
    def env_steps(self) -> int:
        """Env steps behind all accepted chunks."""
        return sum(stats.env_steps for stats in self.shards)


def make_report(
    status: dict[str, Any],
    shards: list[dict[str, Any]],
    actors: list[dict[str, Any]],
    evaluator_steps: int = 0,
) -> FleetReport:
    """The roles' answers as one report."""
    return FleetReport(
        shards=[ReplayStats(*shard["stats"]) for shard in shards],
        learner=LearnerStats(*status["stats"]),
        actors=[make_actor_report(counters) for counters in actors],
        episodes=[EpisodeSummary(*fields) for shard in shards for fields in shard["episodes"]],
        learner_times=status["times"],
        shard_times=[shard["times"] for shard in shards],
        arrivals=[Arrival(*arrival) for shard in shards for arrival in shard["arrivals"]],
        slots=[SlotStats(*slot) for shard in shards for slot in shard["slots"]],
        limiters=[shard["limiter"] for shard in shards],
        sample_age_s=status["sample_age_s"],
        learner_path=status["learner_path"],
        resting=list(status["resting"]),
        evaluator_steps=evaluator_steps,
        incidents=[
            f"a malformed chunk was refused {n} times: {reason}"
            for shard in shards
            for reason, n in shard["malformed_chunks"].items()
        ],
    )


def make_actor_report(counters: dict[str, Any], is_final: bool = False) -> ActorReport:
    """An actor's answer to `ping` as a report; a final one came after its last step."""
    return ActorReport(
        counters["slot"],
        counters["env_steps"],
        counters["produced"],
        counters["unsent"],
        counters["params_learner_step"],
        counters["times"],
        counters["episodes"],
        is_stepping=counters["is_stepping"],
        incarnation=counters["incarnation"],
        is_final=is_final,
    )


class Fleet(Protocol):
    """Roles in lockstep: every call returns when its effect is complete in all of them."""

    def act(self, n_env_steps: int | None) -> None:
        """Every slot plays (None: one episode); chunks enter their shards in slot order."""
        ...

    def shard_stats(self) -> list[ReplayStats]:
        """Counters of all shards."""
        ...

    def learn(self, n_blocks: int) -> int:
        """`n_blocks` blocks of updates; returns the learner step."""
        ...

    def publish(self) -> None:
        """A new version of the parameters, which every actor acts with from the next round on."""
        ...

    def evaluate(self, request: EvaluationRequest) -> EvaluationReport:
        """Evaluate the current parameters and wait for the result."""
        ...

    def report(self) -> FleetReport:
        """Counters and new episodes."""
        ...

    def params_bytes(self) -> bytes:
        """The online network as the bytes of `params.safetensors`."""
        ...

    def fingerprint(self) -> str:
        """`params_sha256` of the online network."""
        ...

    def target_sync_log(self) -> dict[str, Any]:
        """Hard target syncs of the learner and of the actors.

        `syncs` are (learner step, version) as the learner did them, `acknowledged` by actor slot
        the versions of the targets that it acted with.
        """
        ...

    def capture(self, replay_contents: bool) -> Streams:
        """Every core's state by file name, as one consistent cut; read before the next call."""
        ...

    def restore(self, files: Mapping[str, memoryview]) -> int:
        """The inverse of `capture`; returns how many open-window transitions were dropped."""
        ...

    def init_params(self, arrays: dict[str, Array]) -> None:
        """Begin with another run's parameters; before the first round."""
        ...

    def close(self) -> None:
        """End every role."""
        ...
