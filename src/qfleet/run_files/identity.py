"""What a run must never hand out twice, in one small file that is written before it is used.

`identity.json` counts the processes that have driven the run, from which actors' incarnations
follow, and the checkpoints attempted. Owned by the driver, under the run's lock.
"""

from __future__ import annotations

import json
from pathlib import Path

from qfleet.common.errors import CheckpointError
from qfleet.run_files.checkpoint import list_checkpoints
from qfleet.run_files.durable import replace_synced

IDENTITY_FILE = "identity.json"


class RunIdentity:
    """The counters of one run; they grow over its whole life, whatever its processes die of.

    A file that is missing or unreadable, as in runs of older versions, bounds nothing: then the
    checkpoints do, whose names hold their generation and whose contents the process.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / IDENTITY_FILE
        self._checkpoints = run_dir / "checkpoints"
        self._counters = {"processes": 0, "generation": 0}
        try:
            read = json.loads(self._path.read_bytes())
            self._counters = {name: max(0, int(read[name])) for name in self._counters}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            pass

    def next_process(self, at_least: int = 0) -> int:
        """A number for this process: 0, 1, …; and at least that one.

        Raises:
            CheckpointError: when it cannot be written down; it was not handed out then.
        """
        return self._hand_out("processes", max(at_least, self._counters["processes"]) + 1) - 1

    def next_generation(self) -> int:
        """A number for the next checkpoint: 1, 2, …; also of one that will fail.

        Raises:
            CheckpointError: when it cannot be written down; it was not handed out then.
        """
        present = [
            int(path.name.rpartition("-")[2]) for path in list_checkpoints(self._checkpoints)
        ]
        return self._hand_out("generation", max([self._counters["generation"], *present]) + 1)

    def _hand_out(self, name: str, value: int) -> int:
        counters = {**self._counters, name: value}
        try:
            replace_synced(self._path, json.dumps(counters) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self._path} was not written: {error}") from error
        self._counters = counters
        return value
