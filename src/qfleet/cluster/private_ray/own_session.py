"""The processes and the files of a private Ray: apart from the driver's, and gone after it.

Called around `ray.init` when qfleet starts a Ray of its own. Each of Ray's processes leads a
session, so that a signal to the driver's process group (a closing terminal, a batch system) reaches
the driver alone, which then ends them in order.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from qfleet.cluster.private_ray import guard_process
from qfleet.common.errors import ResourcesError

OWNER_FILE = "qfleet_owner.json"


class OwnSession:
    """One private Ray from before its start to after its end; owned by the driver."""

    def __init__(self, place: Path) -> None:
        """`place`: where Ray will make its session directory."""
        self._services: list[subprocess.Popen[bytes]] = []
        self.ended = threading.Event()
        pid = str(os.getpid())
        before = map(str, place.glob(f"session_*_{pid}"))  # of an earlier Ray of this process
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard_process.__file__, str(place), pid, *before],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @contextmanager
    def around_init(self) -> Iterator[None]:
        """Within the block, every process that Ray starts leads a session and is guarded."""
        services: Any = importlib.import_module("ray._private.services")
        popen = services.ConsolePopen

        def guarded(*arguments: Any, **options: Any) -> Any:
            process = popen(*arguments, start_new_session=True, **options)
            self._services.append(process)
            assert self._guard.stdin is not None
            with suppress(OSError):  # somebody has killed the guard: the next run cleans up
                self._guard.stdin.write(f"{process.pid}\n")
                self._guard.stdin.flush()
            return process

        services.ConsolePopen = guarded
        try:
            yield
        finally:
            services.ConsolePopen = popen

    def check(self) -> None:
        """Raise when Ray's processes do not all live: its start waits a minute for a dead one.

        Raises:
            ResourcesError: with the one that has ended.
        """
        for service in self._services:
            if service.poll() is not None:
                name = Path(service.args[0]).name  # type: ignore[index,arg-type]
                raise ResourcesError(f"{name} ended with code {service.returncode}")

    def end(self) -> None:
        """After Ray's end: what is left goes; nobody waits for it."""
        self.ended.set()
        assert self._guard.stdin is not None
        with suppress(OSError):
            self._guard.stdin.close()
        threading.Thread(target=self._guard.wait, name="guard", daemon=True).start()


def mark(folder: Path) -> None:
    """Note in Ray's session directory who owns it."""
    me = psutil.Process()
    with suppress(OSError):
        (folder / OWNER_FILE).write_text(json.dumps([me.pid, me.create_time()]))


def remove_orphans(place: Path) -> int:
    """Remove the session directories below `place` whose owners are dead; returns how many.

    Only those that qfleet has marked: another program's Ray is not ours to judge.
    """
    removed = 0
    for owner in place.glob(f"session_*/{OWNER_FILE}"):
        try:
            pid, created_s = json.loads(owner.read_text())
            is_alive = _is_alive(int(pid), float(created_s))
        except (OSError, ValueError, TypeError):
            continue
        if not is_alive:
            shutil.rmtree(owner.parent, ignore_errors=True)
            removed += 1
    return removed


def _is_alive(pid: int, created_s: float) -> bool:
    """Whether that very process lives; another one may have its number by now."""
    try:
        return abs(psutil.Process(pid).create_time() - created_s) < 1.0
    except psutil.NoSuchProcess:
        return False
