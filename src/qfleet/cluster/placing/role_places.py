"""What roles found where they run, held against the driver's versions and against what they need.

Filled by the watches over the roles as they answer; read for errors, `qfleet status` and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qfleet.common.errors import ResourcesError
from qfleet.common.role_place import role_place

DRIVER = "driver"


@dataclass(frozen=True)
class RolePlace:
    """Of one role's process."""

    node_id: str
    host: str
    pid: int
    memory_bytes: int
    versions: Mapping[str, str]
    logs: tuple[str, ...]
    """Its log files, on its host."""


class RolePlaces:
    """By the role's name (`learner`, `replay-0`, `actor-3-0`, `evaluator-1`)."""

    def __init__(self) -> None:
        self._places: dict[str, RolePlace] = {}

    @cached_property
    def own(self) -> RolePlace:
        """The driver's; looked up while roles start, not before."""
        return _read(role_place(""))

    def take(self, role: str, told: Mapping[str, Any]) -> RolePlace:
        """A role has told; also of a process that took the place of another."""
        self._places[role] = place = _read(told)
        return place

    def forget(self, role: str) -> None:
        """Its process is gone."""
        self._places.pop(role, None)

    def of(self, role: str) -> RolePlace | None:
        """None before it has told."""
        return self._places.get(role)

    def all(self) -> dict[str, RolePlace]:
        """Of every role that has told and is not gone."""
        return dict(self._places)

    def differing(self, role: str) -> str:
        """What it has in other versions than the driver, in words; empty when all are alike."""
        place, own = self._places[role], self.own.versions
        found = [
            f"{name} {version} (here {own[name]})"
            for name, version in place.versions.items()
            if version != own[name]
        ]
        return f"host {place.host} has {', '.join(found)}" if found else ""

    def check_versions(self) -> None:
        """Every role that has told must have the driver's versions.

        Raises:
            ResourcesError: a table of those that differ, below the driver's own.
        """
        wrong = {role: place for role, place in self._places.items() if self.differing(role)}
        if not wrong:
            return
        rows = {DRIVER: self.own, **wrong}
        names = list(self.own.versions)
        lines = [["role", "host", *names]]
        lines += [[r, p.host, *(p.versions[n] for n in names)] for r, p in rows.items()]
        raise ResourcesError(
            "roles run with other versions than the driver: install the same ones on every host, "
            f"or pin roles to hosts (ray.*_resources)\n{_aligned(lines)}"
        )

    def check_memory(self, needed_bytes: Mapping[str, int]) -> None:
        """Each host must have the memory that the full replay of its shards takes.

        Raises:
            ResourcesError: a table of the hosts that have too little.
        """
        by_host: dict[str, list[str]] = {}
        for role in needed_bytes:
            by_host.setdefault(self._places[role].node_id, []).append(role)
        lines = [["host", "roles", "need GiB", "has GiB"]]
        for roles in by_host.values():
            place, needed = self._places[roles[0]], sum(needed_bytes[role] for role in roles)
            if needed > place.memory_bytes:
                sizes = (f"{n / 2**30:.2f}" for n in (needed, place.memory_bytes))
                lines.append([place.host, " ".join(roles), *sizes])
        if len(lines) > 1:
            raise ResourcesError(
                "the full replay does not fit into the memory of the hosts that hold it: lower "
                "replay.capacity, or spread more replay.shards over hosts\n" + _aligned(lines)
            )


def _read(told: Mapping[str, Any]) -> RolePlace:
    return RolePlace(**{**told, "logs": tuple(told["logs"])})


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"  {row}".rstrip() for row in rows)
