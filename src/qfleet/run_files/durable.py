"""Writing so that a crash leaves the old or the new, and a full disk is no end.

Called by whatever the driver keeps in a run directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from qfleet.common.errors import CheckpointError, WireFormatError

TEMPORARY_PREFIX = ".tmp-"
"""Names of unfinished files and directories; they are removed at the next start."""
MAX_WAITING_BYTES = 1024 * 1024
"""Records that a file with no room for them keeps in memory."""


def replace_synced(path: Path, text: str) -> None:
    """Write a small text file whole or not at all, and durably."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskWatch:
    """Writes that must not end a run: a failure is counted, said once, and said again when over.

    What is said before anybody listens is kept.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._failing: set[str] = set()
        self._said: list[str] = []
        self._listener: Callable[[str], None] = self._said.append

    def listen(self, listener: Callable[[str], None]) -> None:
        """Tell `listener` from now on, and at once what was said before."""
        self._listener = listener
        for text in self._said:
            listener(text)

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether `write` succeeded; a text that it returns is added to the news that it does."""
        try:
            remark = write()
        except (OSError, CheckpointError, WireFormatError) as error:
            self.failures += 1
            if what not in self._failing:
                self._failing.add(what)
                self._listener(f"{what} cannot be written, training goes on: {error}")
            return False
        if what in self._failing:
            self._failing.remove(what)
            self._listener(f"{what} is written again{remark if isinstance(remark, str) else ''}")
        return True


class AppendedFile:
    """A file that grows by whole records; none is ever half in it, also on a full disk.

    Records wait in memory until `flush`, and go on waiting while the disk takes none, up to
    `MAX_WAITING_BYTES`. Not thread-safe.
    """

    def __init__(self, path: Path, watch: DiskWatch) -> None:
        self._path, self._watch = path, watch
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._lost = 0
        self._descriptor: int | None = None
        self._end = path.stat().st_size if path.exists() else 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever added."""
        return self._end == 0 and not self._waiting

    def add(self, record: bytes) -> None:
        """Put a record behind those that wait."""
        if self._waiting_bytes + len(record) > MAX_WAITING_BYTES:
            self._lost += 1
            return
        self._waiting.append(record)
        self._waiting_bytes += len(record)

    def flush(self) -> None:
        """Hand what waits to the operating system."""
        if self._waiting:
            self._watch.attempt(self._path.name, self._write)

    def close(self) -> None:
        """Flush and close; calling it twice does no harm."""
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> str | None:
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self._path, flags, 0o666)
        left = memoryview(b"".join(self._waiting))
        try:
            while len(left):
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # what was written of the records is not whole
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        lost, self._lost = self._lost, 0
        return f"; {lost} of its records were lost" if lost else None
