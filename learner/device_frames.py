"""The shards' frames in a GPU's memory: few are sent more than once, and stacks are gathered there.

Owned by the learner's `BatchStager`. A frame belongs to every stack that is drawn around it, dozens
in most runs and thousands in the course's; carrying whole stacks over the bus takes as long as
learning from them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.pixels.stored_columns import STACKS
from qfleet.common.types import ReplaySample
from qfleet.learner.update import Batches

SHARE_OF_FREE_MEMORY = 0.5
"""What frames may fill of a device, at most: the rest is for batches and what else runs there."""
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""The widest that divides a frame is copied: one of eight bytes takes as long as a byte."""


def has_room(device: str, n_bytes: int) -> bool:
    """Whether `n_bytes` of frames are to be kept on `device`: a GPU with twice as many free."""
    if torch.device(device).type != "cuda":
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= SHARE_OF_FREE_MEMORY * free_bytes


class DeviceFrames:
    """Frames uint8 [H, W] under their shard's places, as rows of one tensor; not thread-safe.

    A frame is what its shard has at its place when the newest draws were made: samples must be
    unfolded in the order in which they were drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shape: tuple[int, ...] = ()
        self._rows = torch.empty(0, device=device)
        """Word [n, ⌈H·W / word⌉]: every shard's places in one stretch."""
        self._is_there = np.zeros(0, dtype=bool)
        """Rows that hold a frame."""
        self._stretches: dict[int, tuple[int, int]] = {}
        """Of each shard: its first row and how many there are."""

    def located(self, sample: ReplaySample) -> ReplaySample:
        """Take the sample's new frames; its stacks then name rows, int64 [K, B, S].

        Raises:
            InvariantError: when they name a frame that was never sent.
        """
        assert sample.new_frames is not None, "whose stacks are whole"
        for shard, news in sample.new_frames.items():
            self._take(shard, news)
        first_rows = np.zeros(max(self._stretches) + 1, dtype=np.int64)
        for shard, (first, _) in self._stretches.items():
            first_rows[shard] = first
        first_row = first_rows[sample.shards][..., np.newaxis]
        named = {name: sample.columns[name] + first_row for name in STACKS}
        if not all(self._is_there[rows].all() for rows in named.values()):
            raise InvariantError("a sample names a frame that its shard has not sent")
        return replace(sample, columns={**sample.columns, **named})

    def unfolded(self, batches: Batches) -> Batches:
        """The batches of a located sample with whole stacks, uint8 [K, B, S, H, W]."""
        return batches._replace(
            observations=self._stacks(batches.observations),
            next_observations=self._stacks(batches.next_observations),
        )

    def _stacks(self, rows: Tensor) -> Tensor:
        found = self._rows.index_select(0, rows.reshape(-1))
        return found.view(torch.uint8).view(*rows.shape, *self._shape)

    def _take(self, shard: int, news: NewFrames) -> None:
        if news.n_places > self._stretches.get(shard, (0, 0))[1]:
            self._grow(shard, news)
        if len(news.places):
            rows = self._stretches[shard][0] + news.places
            writable = np.require(news.frames, requirements="W")  # torch warns of a message's views
            frames = torch.from_numpy(writable.reshape(len(rows), -1)).to(self._device)
            self._rows[torch.from_numpy(rows).to(self._device)] = frames.view(self._rows.dtype)
            self._is_there[rows] = True

    def _grow(self, shard: int, news: NewFrames) -> None:
        """Give the shard a stretch at the end, with what it had; rare, so the old one is left."""
        self._shape = news.frames.shape[1:]
        n_bytes = int(np.prod(self._shape))
        word = next(w for w in _WORDS if n_bytes % w.itemsize == 0)
        old_first, n_old = self._stretches.get(shard, (0, 0))
        first = len(self._rows)
        shape = (first + news.n_places, n_bytes // word.itemsize)
        rows, is_there = torch.empty(shape, dtype=word, device=self._device), self._is_there
        if first:
            rows[:first] = self._rows
            rows[first : first + n_old] = self._rows[old_first : old_first + n_old]
        self._is_there = np.zeros(len(rows), dtype=bool)
        self._is_there[:first] = is_there
        self._is_there[first : first + n_old] = is_there[old_first : old_first + n_old]
        self._rows, self._stretches[shard] = rows, (first, news.n_places)
