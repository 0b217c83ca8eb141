"""What a replay shard counts; a checkpoint keeps it also without the replay's contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qfleet.replay_server.arrivals import Arrivals
from qfleet.replay_server.slot_records import SlotRecords


@dataclass(slots=True)
class ShardCounters:
    """Everything a shard counts, in transitions where not said otherwise."""

    inserted: int = 0
    sampled: int = 0
    limiter_inserted_base: int = 0
    """`inserted` when the storage was last emptied: the limiter starts anew from there."""
    limiter_sampled_base: int = 0
    duplicate_chunks: int = 0
    rejected_transitions: int = 0
    dropped_priority_updates: int = 0
    slots: SlotRecords = field(default_factory=SlotRecords)
    """What each actor slot has played and acted with."""
    arrivals: Arrivals = field(default_factory=Arrivals)
    """What has come of each incarnation's transitions."""

    def capture(self) -> dict[str, Any]:
        """As JSON can hold it."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return state | {"slots": self.slots.capture(), "arrivals": self.arrivals.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        for name in self.__slots__:
            if name not in ("slots", "arrivals"):
                setattr(self, name, state[name])
        self.slots.restore(state["slots"])
        self.arrivals.restore(state["arrivals"])
