"""Which actor slots there are to be, who is leaving, and each one's place in the ε ladder.

Pure; owned by the actor watch. The ladder is spread over the slots that exist: not over those that
are leaving, were given up, or wait for a host to have room for them.
"""

from __future__ import annotations

from collections.abc import Callable

from qfleet.fleets.supervisor import ActorSupervisor


class SlotRoster:
    """The wanted number of slots against those of the supervisor."""

    def __init__(self, supervisor: ActorSupervisor, wanted: int) -> None:
        self._supervisor, self.wanted = supervisor, wanted
        self.leaving: set[int] = set()
        self._without_room: set[int] = set()
        self.places: dict[int, tuple[int, int]] = {}
        """By slot: the place in the ladder, and of how many."""
        self.spread()

    def want(self, count: int) -> None:
        """There are to be slots 0 … count − 1."""
        self.wanted = count

    def missing(self, may_fill: Callable[[int], bool]) -> list[int]:
        """Slots that are to be filled for the first time, or again after they were given back."""
        slots = self._supervisor.slots
        return [s for s in range(self.wanted) if s not in slots and may_fill(s)]

    def surplus(self) -> list[int]:
        """Slots that are to be given back and do not know it yet; the highest go first."""
        known = self._supervisor.slots.keys() - self.leaving
        return sorted((slot for slot in known if slot >= self.wanted), reverse=True)

    def leaves(self, slot: int) -> None:
        """It was told to go."""
        self.leaving.add(slot)
        self.spread()

    def has_left(self, slot: int) -> None:
        """Nobody fills it any more."""
        self.leaving.discard(slot)
        self._without_room.discard(slot)
        self._supervisor.retire(slot)
        self.spread()

    @property
    def writers(self) -> list[int]:
        """Slots whose actor writes to its shard, or is about to; those that are leaving as well."""
        slots = self._supervisor.slots.items()
        return [s for s, state in slots if not state.given_up and s not in self._without_room]

    @property
    def without_room(self) -> int:
        """How many slots wait for room."""
        return len(self._without_room - self.leaving)

    def lacks_room(self, slot: int) -> bool:
        """Whether no host has room for the slot's actor, as far as is known."""
        return slot in self._without_room

    def has_room(self, slot: int, has_room: bool) -> None:
        """Whether a host has room for the slot's actor."""
        if has_room == (slot in self._without_room):
            (self._without_room.discard if has_room else self._without_room.add)(slot)
            self.spread()

    def why_absent(self, slot: int) -> str:
        """What a slot without a living actor waits for."""
        if slot in self._without_room:
            return "room in the cluster"
        state = self._supervisor.slots[slot]
        if state.given_up:
            return "nobody: it was given up"
        return "its start" if state.restart_at_s is None else "its restart"

    def spread(self) -> None:
        """Give every slot that exists its place, in the order of the slots."""
        exist = [
            slot
            for slot, state in sorted(self._supervisor.slots.items())
            if not state.given_up and slot not in self.leaving | self._without_room
        ]
        self.places = {slot: (place, len(exist)) for place, slot in enumerate(exist)}
