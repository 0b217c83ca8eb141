"""The record of a benchmark: figures with their spread, the machine, the versions, and its table.

Called by `part_benchmarks.py`, `commands/bench.py` and the programs under benchmarks/, so that all
of them write one shape.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("qfleet", "torch", "numpy", "gymnasium", "ray", "msgpack")
_MAX_LISTED_VALUES = 32
# Taken at import: a benchmark raises the load itself, and what counts is who else was there.
_LOAD_AVERAGE_BEFORE = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure: its repeats, and what else belongs beside it."""

    name: str
    unit: str
    values: tuple[float, ...]
    """One per repeat, or one per event for a latency."""
    detail: dict[str, Any] = field(default_factory=dict)
    """JSON-able."""

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    def as_row(self) -> dict[str, Any]:
        """A JSON-able row: median, min and max; the values themselves when they are few."""
        row: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "median": _rounded(self.median),
            "min": _rounded(min(self.values)),
            "max": _rounded(max(self.values)),
            "count": len(self.values),
        }
        if len(self.values) <= _MAX_LISTED_VALUES:
            row["values"] = [_rounded(value) for value in self.values]
        return row | ({"detail": self.detail} if self.detail else {})


def _rounded(value: float) -> float:
    """Four significant digits and at least whole numbers: more would be noise."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))


def machine() -> dict[str, Any]:
    """What the figures depend on, without names that identify the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "usable_cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": _system(),
        "load_average_before": _LOAD_AVERAGE_BEFORE,
    }


def _system() -> str:
    """Kernel, processor and C library; no release, which may name a host."""
    library = " ".join(filter(None, platform.libc_ver()))
    return ", ".join(filter(None, (f"{platform.system()} {platform.machine()}", library)))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Python and the packages that the figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def make_report(
    benchmark: str, settings: dict[str, Any], measurements: Sequence[Measurement]
) -> dict[str, Any]:
    """The record of one benchmark, in the one shape that all of them share."""
    return {
        "benchmark": benchmark,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "results": [measurement.as_row() for measurement in measurements],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of a report as aligned text."""
    if not rows:
        return "(nothing was measured)"
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':{width}}  {'median':>12} {'min':>12} {'max':>12}"]
    for row in rows:
        figures = " ".join(f"{number(row[key]):>12}" for key in ("median", "min", "max"))
        lines.append(f"{row['name']:{width}}  {figures}  {row['unit']}{_detail_text(row)}")
    return "\n".join(lines)


def number(value: float) -> str:
    """A figure for people: grouped thousands, or up to four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _detail_text(row: dict[str, Any]) -> str:
    detail = row.get("detail", {})
    return f"  ({', '.join(f'{k} {v}' for k, v in detail.items())})" if detail else ""
