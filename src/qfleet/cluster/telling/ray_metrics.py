"""Roles and the run's own metrics as Ray's metrics: in its dashboard and in Prometheus.

Called by the session with each row of metrics, in the driver alone, so that no role pays for it; a
Ray of our own has no agent that would pass them on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qfleet.run_files.summary import RoleRow

RATES = {
    "updates/s": "qfleet_updates_per_s",
    "inserts/s": "qfleet_inserts_per_s",
    "env steps/s": "qfleet_env_steps_per_s",
}
WAITS = "qfleet_role_waits"
_ROLE_TAGS, _RUN_TAGS = ("run", "role", "host"), ("run",)


class RayMetrics:
    """Gauges of one run."""

    def __init__(self, run: str, gauge_class: Any) -> None:
        """`gauge_class` is `ray.util.metrics.Gauge`."""
        self._run, self._class = run, gauge_class
        self._gauges: dict[str, Any] = {}
        self._told: dict[tuple[str, str, str], None] = {}

    def tell(self, values: Mapping[str, float], roles: Iterable[RoleRow]) -> None:
        """Set them all; a role that is gone keeps its name and has the rate 0."""
        for name, value in values.items():
            gauge = self._gauge(f"qfleet_{name.replace('/', '_')}", _RUN_TAGS)
            gauge.set(float(value), tags={"run": self._run})
        told: dict[tuple[str, str, str], None] = {}
        for row in roles:
            if row.host:
                self._set(RATES[row.unit], row.role, row.host, row.rate)
                self._set(WAITS, row.role, row.host, float(bool(row.waits_for)))
                told[RATES[row.unit], row.role, row.host] = None
        for name, role, host in self._told.keys() - told.keys():
            self._set(name, role, host, 0.0)
        self._told |= told

    def _set(self, name: str, role: str, host: str, value: float) -> None:
        tags = {"run": self._run, "role": role, "host": host}
        self._gauge(name, _ROLE_TAGS).set(value, tags=tags)

    def _gauge(self, name: str, tags: tuple[str, ...]) -> Any:
        if name not in self._gauges:
            self._gauges[name] = self._class(name, tag_keys=tags)
        return self._gauges[name]


def ray_metrics(run: str) -> RayMetrics:
    """Of that run, in the Ray that this process is connected to."""
    from ray.util.metrics import Gauge

    return RayMetrics(run, Gauge)
