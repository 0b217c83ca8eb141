"""What every role writes to its standard output and error, in the run directory: `logs/<role>.log`.

Called by both loops over Ray. Ray keeps a file for each worker on its host, in a folder that a Ray
of our own takes along. Those of this host are read directly, also after the role has died; those of
other hosts come through the role itself, so no shared disk is needed: there the last seconds of one
that died are missing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qfleet.cluster.answers import answer
from qfleet.cluster.placing.role_places import RolePlace
from qfleet.cluster.ray_cluster import import_ray
from qfleet.common.errors import QfleetError
from qfleet.common.role_place import read_logs

PERIOD_S = 2.0
MAX_BYTES = 4 * 2**20
"""Of one role's log; what follows is left out, and said."""


@dataclass
class _Followed:
    handle: Any
    place: RolePlace
    offsets: list[int] = field(default_factory=list)
    asked: Any = None
    written: int = 0


class RoleLogs:
    """The logs of all roles that are followed; owned by the driver's main thread."""

    def __init__(self, folder: Path | None, own_host: str) -> None:
        """Write into `folder`, which is made when there is something; None: do nothing."""
        self._folder, self._own_host = folder, own_host
        self._followed: dict[str, _Followed] = {}
        self._looked_at_s = -1e9

    def follow(self, role: str, handle: Any, place: RolePlace) -> None:
        """Begin the log of a role that has told where it runs."""
        if self._folder is None:
            return
        self._followed[role] = _Followed(handle, place, [0] * len(place.logs))
        versions = ", ".join(f"{name} {version}" for name, version in place.versions.items())
        head = f"{role}: process {place.pid} on {place.host}, {versions}\n"
        self._append(role, head.encode())

    def collect(self, now_s: float) -> None:
        """Write down what is new, at most every `PERIOD_S`; waits for nobody."""
        if now_s - self._looked_at_s < PERIOD_S:
            return
        self._looked_at_s = now_s
        for role in list(self._followed):
            self._collect(role)

    def end(self, role: str) -> None:
        """The role's process is gone: take what it has left on this host."""
        if role in self._followed:
            self._collect(role)
            del self._followed[role]

    def close(self) -> None:
        """Take what is there from every role on this host."""
        for role in list(self._followed):
            self.end(role)

    def _collect(self, role: str) -> None:
        one = self._followed[role]
        if one.place.host == self._own_host:
            self._take(role, read_logs(one.place.logs, one.offsets))
        elif one.asked is None:
            one.asked = one.handle.written.remote(list(one.place.logs), one.offsets)
        elif import_ray().wait([one.asked], timeout=0)[0]:
            ref, one.asked = one.asked, None
            with contextlib.suppress(QfleetError):  # lost: asked again; dead: others say so
                self._take(role, answer(ref, "driver", role))

    def _take(self, role: str, pieces: list[bytes]) -> None:
        offsets = self._followed[role].offsets
        for index, piece in enumerate(pieces):
            offsets[index] += len(piece)
            self._append(role, piece)

    def _append(self, role: str, data: bytes) -> None:
        """A log that cannot be written costs no run."""
        one = self._followed[role]
        if not data or self._folder is None or one.written > MAX_BYTES:
            return
        if one.written + len(data) > MAX_BYTES:
            data = f"\n… more than {MAX_BYTES} bytes are left out\n".encode()
            one.written = MAX_BYTES
        one.written += len(data)
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            with open(self._folder / f"{role}.log", "ab") as file:
                file.write(data)
