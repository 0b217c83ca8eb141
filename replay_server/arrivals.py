"""What has come of the transitions that each incarnation of each actor has numbered.

Called by the replay shard with every chunk; part of its checkpoint. An incarnation numbers its
transitions from 0 without gaps and each chunk names its first one, so the shard knows how many must
have been made, whether or not all of them came: what was lost is counted, not concluded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qfleet.common.types import TransitionChunk


class Arrival(NamedTuple):
    """Of one incarnation of one actor slot, in transitions."""

    slot: int
    incarnation: int
    numbered: int
    """At least so many were made: the end of the latest chunk that came."""
    stored: int
    refused: int


@dataclass(slots=True)
class _Tally:
    numbered: int = 0
    stored: int = 0
    refused: int = 0
    refused_seqs: set[int] = field(default_factory=set)
    """Chunks that were refused whole: one that is sent again is counted once."""


class Arrivals:
    """Tallies of all incarnations that have sent anything; a shard sees all chunks of its slots."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[int, int], _Tally] = {}

    def stored(self, chunk: TransitionChunk, rows: int) -> None:
        """An accepted chunk, of which so many rows were stored."""
        tally = self._tally_of(chunk)
        tally.stored += rows
        tally.refused += len(chunk) - rows

    def refused(self, chunk: TransitionChunk) -> None:
        """A chunk of this run that came too late to be stored."""
        tally = self._tally_of(chunk)
        if chunk.chunk_id.seq not in tally.refused_seqs:
            tally.refused_seqs.add(chunk.chunk_id.seq)
            tally.refused += len(chunk)

    def _tally_of(self, chunk: TransitionChunk) -> _Tally:
        key = chunk.chunk_id.actor_slot, chunk.chunk_id.incarnation
        tally = self._tallies.setdefault(key, _Tally())
        tally.numbered = max(tally.numbered, chunk.first_transition + len(chunk))
        return tally

    def listed(self) -> list[Arrival]:
        """All tallies, by slot and incarnation."""
        return [
            Arrival(*key, tally.numbered, tally.stored, tally.refused)
            for key, tally in sorted(self._tallies.items())
        ]

    def capture(self) -> list[list[Any]]:
        """Its state as JSON-able values."""
        return [
            [*key, tally.numbered, tally.stored, tally.refused, sorted(tally.refused_seqs)]
            for key, tally in sorted(self._tallies.items())
        ]

    def restore(self, state: list[list[Any]]) -> None:
        """The inverse of `capture`."""
        self._tallies = {
            (slot, incarnation): _Tally(numbered, stored, refused, set(seqs))
            for slot, incarnation, numbered, stored, refused, seqs in state
        }
