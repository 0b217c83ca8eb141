"""What of the configuration concerns the Ray cluster; made by `settings/plans.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Which cluster to use, and what all roles together ask of it."""

    cpus: float
    gpus: int
    address: str | None
    """`ray.address`; None: RAY_ADDRESS or a cluster of our own."""
    wait_for_resources_s: float
    ship: tuple[str, ...]
    is_lean: bool
    """Whether a cluster of our own is started with what carries actors and objects alone."""

    @property
    def resources(self) -> dict[str, float]:
        """Ray's names and the amounts."""
        return {"CPU": self.cpus, "GPU": float(self.gpus)}
