"""What a role finds where it runs: host, process, memory, versions, and what it has written.

Called by the Ray shells of all roles, whose driver compares the answers, and by the driver for its
own. Nothing here imports what it tells the version of.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

COMPARED = ("qfleet", "ray", "torch")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MAX_LOG_BYTES = 65536
"""Of one answer."""


def role_place(node_id: str) -> dict[str, Any]:
    """Of this process; `node_id` is Ray's name of the host."""
    return {
        "node_id": node_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "memory_bytes": memory_bytes(),
        "versions": versions(),
        "logs": [str(path) for path in _log_files()],
    }


def memory_bytes() -> int:
    """Memory that this process's host has, or its container may use."""
    found = psutil.virtual_memory().total
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or `max`
            found = min(found, int(Path(limit).read_text()))
    return int(found)


def versions() -> dict[str, str]:
    """Of Python and of what all roles must have alike; builds of one release count as alike."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in COMPARED:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _log_files() -> list[Path]:
    """The files that standard output and error go to, as Ray gives each worker its own."""
    found = []
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_file():
                found.append(path)
    return found


def read_logs(paths: Sequence[str], offsets: Sequence[int]) -> list[bytes]:
    """What these files hold from those bytes on, at most `MAX_LOG_BYTES` of each."""
    return [_read_from(Path(path), offset) for path, offset in zip(paths, offsets, strict=True)]


def _read_from(path: Path, offset: int) -> bytes:
    try:
        if path.stat().st_size <= offset:
            return b""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(MAX_LOG_BYTES)
    except OSError:
        return b""
