"""What roles ask of a cluster against what it has, as numbers and as a table.

Called while roles are placed and when they cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SMALLER = (
    "add hosts, or lower actors.count, actors.num_cpus or learner.num_gpus; with an autoscaler, "
    "raise ray.wait_for_resources_s"
)
Amounts = Mapping[str, float]
"""Ray's names of resources and how much of each."""


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What the roles of one kind ask for."""

    role: str
    count: int
    least: int
    """So many must have a place before the run begins."""
    each: Amounts

    def __str__(self) -> str:
        return f"{self.count} {self.role}{'s' * (self.count > 1)} ({in_words(self.each)})"


def in_words(amounts: Amounts) -> str:
    """`CPU 0.5, GPU 1`, without what is nothing."""
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items() if amount) or "none"


def free_in_words(names: Iterable[str], free: Amounts) -> str:
    """What is free of those; nothing of one is said too, for that is what is waited for."""
    return ", ".join(f"{name} {free.get(name, 0.0):g}" for name in names)


def total(needs: Iterable[RoleNeed]) -> dict[str, float]:
    """What all of them ask for together; CPU and GPU always."""
    together = {"CPU": 0.0, "GPU": 0.0}
    for need in needs:
        for name, amount in need.each.items():
            together[name] = together.get(name, 0.0) + need.count * amount
    return together


def how_many_fit(each: Amounts, free: Amounts) -> float:
    """So many that ask for `each` have room in what is free; infinity where they ask for none."""
    rooms = [free.get(name, 0.0) / amount for name, amount in each.items() if amount > 0.0]
    # A sum of tenths may fall short of a whole by a rounding.
    return math.floor(min(rooms) + 1e-6) if rooms else math.inf


def table(needs: Iterable[RoleNeed], ray: Any) -> str:
    """What is wanted by whom, beside what the cluster and each of its hosts has."""
    needs = list(needs)
    present, free = ray.cluster_resources(), ray.available_resources()
    lines = [f"  wanted by {', '.join(map(str, needs))}"]
    lines += [
        f"  {name}: wanted {amount:g}, the cluster has {present.get(name, 0.0):g}, "
        f"of which {free.get(name, 0.0):g} are free"
        for name, amount in total(needs).items()
    ]
    names = total(needs)
    for node in ray.nodes():
        if node["Alive"]:
            has = {name: node["Resources"].get(name, 0.0) for name in names}
            lines.append(f"  host {node['NodeManagerHostname']} has {in_words(has)}")
    return "\n".join(lines)
