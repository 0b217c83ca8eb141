"""What a shard keeps of each actor slot: what it played, and which parameters acted.

Called by the replay shard with every chunk that it accepts; part of its checkpoint.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

from qfleet.common.errors import InvariantError
from qfleet.common.types import SlotStats, TransitionChunk

TARGETS_KEPT = 1000
"""Newest target syncs that are kept of each slot."""


@dataclass(slots=True)
class _Slot:
    incarnation: int = 0
    env_steps: int = 0
    episodes: int = 0
    transitions: int = 0
    params_version: int = 0
    target_version: int = 0
    targets_acted: collections.deque[int] = field(
        default_factory=lambda: collections.deque(maxlen=TARGETS_KEPT)
    )


class SlotRecords:
    """Counters and versions by actor slot, over all incarnations of a slot.

    The versions come back in the chunks, so that a version in `targets_acted` is one that an actor
    has acted with: this is the acknowledgement of target syncs.
    """

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        # Asked for with every sample: counted as they come, not summed over slots.
        self.env_steps = 0
        """Of all slots."""
        self.episodes = 0
        """Of all slots."""

    def accepted(self, chunk: TransitionChunk, rows: int) -> None:
        """Count a chunk of which so many rows were stored."""
        slot = self._slots.setdefault(chunk.chunk_id.actor_slot, _Slot())
        slot.incarnation = chunk.chunk_id.incarnation
        slot.env_steps += chunk.env_steps
        self.env_steps += chunk.env_steps
        slot.episodes += len(chunk.episodes)
        self.episodes += len(chunk.episodes)
        slot.transitions += rows
        slot.params_version, slot.target_version = chunk.params_version, chunk.target_version
        newest = slot.targets_acted[-1] if slot.targets_acted else 0
        if chunk.target_version > newest:  # two chunks may have changed places on their way
            slot.targets_acted.append(chunk.target_version)

    def played_at_least(self, env_steps: dict[int, int]) -> None:
        """Env steps by slot that were played, whether or not their transitions are here."""
        for number, steps in env_steps.items():
            slot = self._slots.setdefault(number, _Slot())
            self.env_steps += max(0, steps - slot.env_steps)
            slot.env_steps = max(slot.env_steps, steps)

    def stats(self) -> list[SlotStats]:
        """Of every slot, in order."""
        return [
            SlotStats(
                number,
                slot.incarnation,
                slot.env_steps,
                slot.transitions,
                slot.params_version,
                slot.target_version,
            )
            for number, slot in sorted(self._slots.items())
        ]

    def targets_acted(self) -> dict[int, list[int]]:
        """Versions of the targets that each slot has acted with, oldest first."""
        return {number: list(slot.targets_acted) for number, slot in sorted(self._slots.items())}

    def capture(self) -> list[list[Any]]:
        """Its state as JSON-able values."""
        return [
            [*stats[:3], self._slots[stats.slot].episodes, *stats[3:], targets]
            for stats, targets in zip(self.stats(), self.targets_acted().values(), strict=True)
        ]

    def restore(self, state: list[list[Any]]) -> None:
        """The inverse of `capture`."""
        self._slots = {}
        for number, *counts, targets in state:
            self._slots[number] = _Slot(*counts)
            self._slots[number].targets_acted.extend(targets)
        self.env_steps = sum(slot.env_steps for slot in self._slots.values())
        self.episodes = sum(slot.episodes for slot in self._slots.values())

    def check_valid(self) -> None:
        """Raise `InvariantError` unless the totals are those of the slots."""
        slots = self._slots.values()
        summed = (sum(slot.env_steps for slot in slots), sum(slot.episodes for slot in slots))
        if (self.env_steps, self.episodes) != summed:
            raise InvariantError(f"{self.env_steps}, {self.episodes} counted, {summed} by slot")
