"""What runs on a host that is lost is replaced elsewhere, before Ray has seen it.

Called by the asynchronous loop once per tick.
"""

from __future__ import annotations

from typing import Protocol

from qfleet.cluster.placing.host_pulse import HostPulse, LostHost
from qfleet.common.errors import RoleLostError
from qfleet.fleets.watches.actor_watch import ActorWatch
from qfleet.fleets.watches.evaluation_watch import EvaluationRecord, EvaluationWatch
from qfleet.fleets.watches.shard_watch import ShardRecord, ShardWatch


class HostRecord(EvaluationRecord, ShardRecord, Protocol):
    """What the watches ask of the run's bookkeeping."""


class HostWatch:
    """Hands the roles of lost hosts to the watches that replace them."""

    def __init__(
        self,
        pulse: HostPulse,
        actors: ActorWatch,
        shards: ShardWatch,
        evaluations: EvaluationWatch,
    ) -> None:
        self._pulse = pulse
        self._actors, self._shards, self._evaluations = actors, shards, evaluations

    def go_on(self, record: HostRecord, now_s: float) -> None:
        """Deal with what is new.

        Raises:
            RoleLostError: when the learner is lost, or the only shard.
        """
        for news in self._pulse.look(now_s):
            if isinstance(news, str):
                record.incident(news)
            else:
                self._lose(news, record, now_s)

    def _lose(self, host: LostHost, record: HostRecord, now_s: float) -> None:
        reason = host.reason
        record.incident(f"{reason}: it is lost with {', '.join(host.roles)}; the rest goes on")
        for role in host.roles:
            kind, *numbers = role.split("-")
            if kind == "actor":
                self._actors.lose(int(numbers[0]), reason)
            elif kind == "replay":
                self._shards.lose_host(int(numbers[0]), reason, record, now_s)
            elif kind == "evaluator":
                self._evaluations.lose_host(reason, record)
            else:
                raise RoleLostError(f"the learner is lost: {reason}")

    def close(self) -> None:
        """Ask no host any more."""
        self._pulse.close()
