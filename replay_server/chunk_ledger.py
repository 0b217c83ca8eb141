"""Which chunks of a run a shard has accepted: every one once, and none of a replaced actor.

Called by the replay shard for every chunk; its state is part of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qfleet.common.errors import InvariantError
from qfleet.common.types import ChunkId

ACCEPTED = "accepted"
DUPLICATE = "duplicate"
STALE_INCARNATION = "stale_incarnation"
FOREIGN_RUN = "foreign_run"

REORDER_WINDOW_CHUNKS = 8
"""How far a chunk may arrive ahead of the one expected; an actor has two unacknowledged."""


@dataclass(slots=True)
class _SlotRecord:
    """What has arrived of one actor slot's newest incarnation."""

    incarnation: int
    next_seq: int = 0
    """Every lower number has arrived or was given up."""
    ahead: set[int] = field(default_factory=set)
    """Numbers above `next_seq` that have arrived."""

    def holes(self) -> int:
        """Numbers that are missing below the highest one that arrived."""
        return max(self.ahead) + 1 - self.next_seq - len(self.ahead) if self.ahead else 0

    def accept(self, seq: int) -> int:
        """Note the arrival of a new number and return how many missing ones were given up."""
        self.ahead.add(seq)
        return self.give_up_below(seq - REORDER_WINDOW_CHUNKS)

    def give_up_below(self, floor: int) -> int:
        """Await no number below `floor` any more; returns how many of them are missing."""
        lost = 0
        if floor > self.next_seq:
            arrived = {number for number in self.ahead if number < floor}
            lost = floor - self.next_seq - len(arrived)
            self.ahead -= arrived
            self.next_seq = floor
        while self.next_seq in self.ahead:
            self.ahead.remove(self.next_seq)
            self.next_seq += 1
        return lost


class ChunkLedger:
    """Admits every chunk of a run once, and none of an actor that was replaced.

    Per actor slot: the newest incarnation, the number expected next and those that came before it.
    A number more than `REORDER_WINDOW_CHUNKS` behind the newest is given up: it counts as a gap,
    and as a duplicate should it still come.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.gap_chunks = 0
        self._records: dict[int, _SlotRecord] = {}

    def admit(self, chunk_id: ChunkId) -> str:
        """The `InsertAck` status for a chunk; when it is `accepted`, its number is now used up."""
        status = self.status_of(chunk_id)
        if status == ACCEPTED:
            self.fence(chunk_id.actor_slot, chunk_id.incarnation)
            self.gap_chunks += self._records[chunk_id.actor_slot].accept(chunk_id.seq)
        return status

    def status_of(self, chunk_id: ChunkId) -> str:
        """What `admit` would say now; nothing is changed."""
        if chunk_id.run_id != self.run_id:
            return FOREIGN_RUN
        record = self._records.get(chunk_id.actor_slot)
        if record is None or chunk_id.incarnation > record.incarnation:
            return ACCEPTED
        if chunk_id.incarnation < record.incarnation:
            return STALE_INCARNATION
        is_known = chunk_id.seq < record.next_seq or chunk_id.seq in record.ahead
        return DUPLICATE if is_known else ACCEPTED

    def comes_early(self, chunk_id: ChunkId) -> bool:
        """Whether lower numbers of the same incarnation are missing."""
        record = self._records.get(chunk_id.actor_slot)
        is_known = record is not None and record.incarnation == chunk_id.incarnation
        return chunk_id.seq > (record.next_seq if record is not None and is_known else 0)

    def fence(self, actor_slot: int, incarnation: int) -> None:
        """Refuse a slot's incarnations below this one from now on; holes left by them are gaps."""
        record = self._records.get(actor_slot)
        if record is not None and record.incarnation >= incarnation:
            return
        if record is not None:
            self.gap_chunks += record.holes()
        self._records[actor_slot] = _SlotRecord(incarnation)

    def begin_at(self, actor_slot: int, incarnation: int, seq: int) -> None:
        """Await nothing of that incarnation below `seq`: it went to a predecessor of this shard.

        What is missing of it is a gap, as are the holes of incarnations before.
        """
        self.fence(actor_slot, incarnation)
        record = self._records[actor_slot]
        if record.incarnation == incarnation:
            self.gap_chunks += record.give_up_below(seq)

    def hwm(self, actor_slot: int) -> int:
        """The newest number of the slot's incarnation below which none is awaited; −1 at first."""
        record = self._records.get(actor_slot)
        return record.next_seq - 1 if record is not None else -1

    def capture(self) -> dict[str, Any]:
        """Its state as JSON-able values."""
        records = [
            [slot, record.incarnation, record.next_seq, sorted(record.ahead)]
            for slot, record in sorted(self._records.items())
        ]
        return {"run_id": self.run_id, "gap_chunks": self.gap_chunks, "records": records}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured ledger; slots of another run are forgotten, for it numbers anew."""
        self.gap_chunks = state["gap_chunks"]
        records = state["records"] if state["run_id"] == self.run_id else []
        self._records = {
            slot: _SlotRecord(incarnation, next_seq, set(ahead))
            for slot, incarnation, next_seq, ahead in records
        }

    def check_valid(self) -> None:
        """Raise `InvariantError` when a number ahead is outside the window."""
        for slot, record in self._records.items():
            last = record.next_seq + REORDER_WINDOW_CHUNKS
            if any(not record.next_seq < seq <= last for seq in record.ahead):
                raise InvariantError(f"slot {slot} expects {record.next_seq}, has {record.ahead}")
