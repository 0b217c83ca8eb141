"""Keeps two processes from writing to one run directory.

Called by `run_directory`, and by `qfleet status` to see whether a run is alive. The kernel's lock
on the file decides, so it ends with its process, on NFS too; the file's text says who holds it. The
file is never removed: a lock on a removed file would exclude nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from qfleet.common.errors import ConfigError

LOCK_FILE = ".lock"
_UNSUPPORTED = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}


class LockOwner(NamedTuple):
    """The process that holds, or held, a run directory."""

    host: str
    pid: int
    started: str
    """Tells the process from a later one with the same pid."""

    def is_alive_here(self) -> bool:
        """Whether this host runs that very process."""
        return self.host == socket.gethostname() and self.started == process_start(self.pid)


class RunLock:
    """A held lock; `release` or the end of the process gives it back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, run_dir: Path) -> RunLock:
        """Lock `run_dir` for this process; a lock left by a dead process is taken over.

        Raises:
            ConfigError: when another process holds it, naming host and process.
        """
        try:
            descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{run_dir / LOCK_FILE} cannot be opened: {error.strerror} (run.dir): "
                "choose another --run-dir"
            ) from error
        if not _try_lock(descriptor):
            os.close(descriptor)
            owner = _read_owner(run_dir)
            who = f"process {owner.pid} on {owner.host}" if owner else "another process"
            raise ConfigError(
                f"{run_dir} is in use by {who} (run.dir): wait until it ends, stop it, "
                "or choose another --run-dir"
            )
        own = LockOwner(socket.gethostname(), os.getpid(), process_start(os.getpid()) or "")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(own._asdict()).encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; calling it twice does no harm."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def live_owner(run_dir: Path) -> LockOwner | None:
    """The living process that holds `run_dir`, or None."""
    owner = _read_owner(run_dir)
    if owner is None:
        return None
    if owner.host == socket.gethostname():
        return owner if owner.is_alive_here() else None
    with open(run_dir / LOCK_FILE, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return owner  # held, or not to be known
    return None


def process_start(pid: int) -> str | None:
    """When process `pid` started, in a form that clock changes leave alone; None without one."""
    with contextlib.suppress(OSError):
        # Field 22, in ticks since boot; the name in field 2 may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    import psutil

    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.Error:
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # A file system without locks: believe the text. A foreign host cannot be asked.
        owner = _parse_owner(os.pread(descriptor, 4096, 0))
        return owner is None or (owner.host == socket.gethostname() and not owner.is_alive_here())
    return True


def _read_owner(run_dir: Path) -> LockOwner | None:
    try:
        return _parse_owner((run_dir / LOCK_FILE).read_bytes())
    except OSError:
        return None


def _parse_owner(text: bytes) -> LockOwner | None:
    try:
        fields = json.loads(text)
        return LockOwner(str(fields["host"]), int(fields["pid"]), str(fields["started"]))
    except (ValueError, KeyError, TypeError):
        return None  # empty after a release, or being written at this moment
