"""Where every transition of a run went, by what actors and shards have counted themselves.

Owned by the session's counters. Each incarnation of an actor numbers its transitions from 0; the
driver remembers the highest number that it has heard of each, from the actor or from a shard to
which a chunk came, and the shards count what they stored and refused. What an incarnation that is
gone has numbered and no shard has is lost: both numbers are counts, neither is made from the other.
"""

from __future__ import annotations

from typing import Any

from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run_files.summary import Accounting

_Key = tuple[int, int]
"""Actor slot and incarnation."""
LOWER_BOUNDS = ["produced", "lost"]
"""What is too small by the transitions of which nobody could tell any more."""


class TransitionAccounts:
    """What every incarnation has numbered, over all processes and restarts of the run."""

    def __init__(self) -> None:
        self._numbered: dict[_Key, int] = {}
        self._complete: set[_Key] = set()
        """Those that numbered nothing after what they told last."""
        self._rolled_back: set[int] = set()
        """Slots whose shard went back to a cut: what it had taken since is lost, also of actors
        that live."""
        self._is_complete = True
        """Whether no incarnation can have come and gone unheard."""

    def observe(self, report: FleetReport) -> None:
        """Take in the counters of the living, the last words of the dead, and what has come."""
        for actor in [*report.actors, *report.ended]:
            key = actor.slot, actor.incarnation
            self._hear(key, actor.produced)
            if actor.is_final:
                self._complete.add(key)
        for arrival in report.arrivals:
            self._hear((arrival.slot, arrival.incarnation), arrival.numbered)

    def _hear(self, key: _Key, numbered: int) -> None:
        self._numbered[key] = max(self._numbered.get(key, 0), numbered)

    def all_told(self, report: FleetReport) -> None:
        """Nobody plays any more: what the living have told in `report` is all."""
        self._complete |= {(actor.slot, actor.incarnation) for actor in report.actors}

    def ended_unheard(self) -> None:
        """All roles ended at once, and some may have played without having told of it."""
        self._is_complete = False

    def shard_rolled_back(self, slots: list[int]) -> None:
        """The shard of these slots was restored alone: it has forgotten what it acknowledged."""
        self._rolled_back.update(slots)

    def _in_flight(self, actor: ActorReport, missing: int) -> int:
        """Of what a living actor has numbered and no shard has: what may still come."""
        return min(missing, actor.unsent) if actor.slot in self._rolled_back else missing

    def accounting(self, report: FleetReport) -> Accounting:
        """The counts, and the names of those that are lower bounds."""
        came = {(a.slot, a.incarnation): a.stored + a.refused for a in report.arrivals}
        missing = {key: n - came.get(key, 0) for key, n in self._numbered.items()}
        living = {(actor.slot, actor.incarnation): actor for actor in report.actors}
        gone = missing.keys() - living.keys()
        in_flight = sum(self._in_flight(living[key], missing[key]) for key in missing.keys() - gone)
        is_exact = self._is_complete and gone <= self._complete
        return Accounting(
            produced=sum(self._numbered.values()),
            resident=sum(shard.size for shard in report.shards),
            evicted=sum(shard.evicted for shard in report.shards),
            rejected=sum(arrival.refused for arrival in report.arrivals),
            lost=sum(missing.values()) - in_flight,
            in_flight=in_flight,
            at_least=[] if is_exact else LOWER_BOUNDS,
        )

    def capture(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "numbered": [[*key, n] for key, n in sorted(self._numbered.items())],
            "complete": sorted(self._complete),
            "rolled_back": sorted(self._rolled_back),
            "is_complete": self._is_complete,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what was known at a cut; what is known already, of later, stays known."""
        for slot, incarnation, numbered in state["numbered"]:
            self._hear((slot, incarnation), numbered)
        self._complete |= {(slot, incarnation) for slot, incarnation in state["complete"]}
        self._rolled_back.update(state.get("rolled_back", ()))
        self._is_complete &= state["is_complete"]
