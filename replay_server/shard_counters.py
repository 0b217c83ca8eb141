"""What a replay shard counts; a checkpoint keeps it also without the replay's contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    env_steps_by_slot: dict[int, int] = field(default_factory=dict)
    episodes_by_slot: dict[int, int] = field(default_factory=dict)

    def capture(self) -> dict[str, Any]:
        """As JSON can hold it."""
        state = {name: getattr(self, name) for name in self.__slots__}
        state["env_steps_by_slot"] = sorted(self.env_steps_by_slot.items())
        state["episodes_by_slot"] = sorted(self.episodes_by_slot.items())
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        by_slot = ("env_steps_by_slot", "episodes_by_slot")
        restored = ShardCounters(**{**state, **{name: dict(state[name]) for name in by_slot}})
        for name in self.__slots__:
            setattr(self, name, getattr(restored, name))
