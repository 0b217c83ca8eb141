"""The roles' answers, plain maps and lists, as the reports that the driver reads.

Called by both schedules over Ray.
"""

from __future__ import annotations

from typing import Any

from qfleet.common.types import EpisodeSummary, LearnerStats, ReplayStats, SlotStats
from qfleet.fleets.fleet import ActorReport, FleetReport


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
        slots=[SlotStats(*slot) for shard in shards for slot in shard["slots"]],
        limiters=[shard["limiter"] for shard in shards],
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
        counters["episodes"],
    )
