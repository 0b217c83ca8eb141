"""A stored replay memory as a `torch.utils.data.Dataset`, as the course's chapter makes one.

    dataset = qfleet.ReplayDataset("runs/latest")
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=32 * 1000)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=32, sampler=sampler): ...

Called by users; imports torch, and is itself imported when it is first asked for.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from qfleet.common.capture_stream import decode_capture, restoring
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
)
from qfleet.replay_server.stored_rows import StoredRows
from qfleet.run_files.checkpoint import FORMAT_VERSION, MANIFEST
from qfleet.run_files.checkpoint_reader import Checkpoint, newest_valid, read_checkpoint
from qfleet.run_files.find_runs import RUNS, checked_place, find_run

TERMINATED = "terminated"
COLUMNS = (OBSERVATION, ACTION, N_STEP_RETURN, NEXT_OBSERVATION, TERMINATED)
"""The chapter's five, in its order; with n-step 1 the return is the reward."""
_STORED = (OBSERVATION, ACTION, N_STEP_RETURN, BOOTSTRAP_DISCOUNT, NEXT_OBSERVATION)
_SHARD_FILE = re.compile(r"replay-(\d+)\.qflt")


class ReplayDataset(Dataset[tuple[Any, ...]]):
    """The transitions of a checkpoint, item 0 the oldest; several shards one after the other.

    An item is a tuple of `columns`: observations float32 [O] (of pixels uint8 [K, H, W]), the
    action int64, the return and the discount float32, `terminated` bool. With an n-step above 1,
    or to do without γ, take `bootstrap_discount` in place of `terminated`: it is γᵏ of the k steps
    taken, and 0 where the episode terminated. Draws of a sampler are uniform unless it says
    otherwise: priorities are not looked at.

    Holds the memory once; of pixels each frame once.
    """

    def __init__(
        self, checkpoint_or_run: str | Path | None = None, columns: Sequence[str] = COLUMNS
    ) -> None:
        """Read a replay memory.

        Args:
            checkpoint_or_run: A checkpoint's directory; a run, which means its newest checkpoint;
                None is the latest run.
            columns: What an item holds, in order.

        Raises:
            ConfigError: when there is no such run, or no such column.
            CheckpointError: when it has no checkpoint that is intact and holds the memory.
        """
        known = (*_STORED, TERMINATED)
        if unknown := [name for name in columns if name not in known]:
            raise ConfigError(f"columns must be among {', '.join(known)}, got {unknown[0]}")
        self.columns = tuple(columns)
        checkpoint = _find_checkpoint(checkpoint_or_run)
        self.path = checkpoint.path
        """The checkpoint that is read."""
        self._shards = [_read_shard(checkpoint, name) for name in _shard_files(checkpoint)]
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One transition.

        Raises:
            IndexError: when there are not so many.
        """
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        number = bisect.bisect_right(self._ends, wanted)
        shard = self._shards[number]
        row = int(wanted) - (self._ends[number] - len(shard))
        return tuple(_item(shard, name, row) for name in self.columns)


def _item(shard: StoredRows, name: str, row: int) -> Any:
    if name == TERMINATED:
        return shard.value(BOOTSTRAP_DISCOUNT, row) == 0.0
    value = shard.value(name, row)
    return value.astype(np.int64) if name == ACTION else value  # as `gather` wants indices


def _find_checkpoint(run: str | Path | None) -> Checkpoint:
    if run is not None:
        path = checked_place(run)
        for candidate in (path, RUNS / path):
            if (candidate / MANIFEST).is_file():
                return read_checkpoint(candidate)
    directory = find_run(run)
    found, skipped = newest_valid(directory / "checkpoints")
    if found is None:
        raise CheckpointError(
            "\n  ".join([f"{directory} has no checkpoint that is intact", *skipped])
        )
    return found


def _shard_files(checkpoint: Checkpoint) -> list[str]:
    version = checkpoint.manifest["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{checkpoint.path} is of format {version}, of an older qfleet: its replay memory can "
            f"be read by the qfleet that wrote it; this one reads format {FORMAT_VERSION}"
        )
    numbers = [int(match[1]) for name in checkpoint.names if (match := _SHARD_FILE.fullmatch(name))]
    if not numbers:
        raise CheckpointError(
            f"{checkpoint.path} holds no replay memory; a run's checkpoints do: name RUN or "
            "RUN/latest"
        )
    return [f"replay-{number}.qflt" for number in sorted(numbers)]


def _read_shard(checkpoint: Checkpoint, name: str) -> StoredRows:
    path = str(checkpoint.path / name)
    with restoring(path):
        return StoredRows(decode_capture(checkpoint.open(name)), path)
