"""`qfleet bench NAME`: how fast a part of the system runs on this machine, within seconds.

Called by the command line. The measuring is in `part_benchmarks.py`; comparisons with other
libraries and whole runs are under benchmarks/ (`make bench`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from qfleet.bench.bench_record import Measurement, make_report, table
from qfleet.bench.part_benchmarks import PARTS, limiting_role, resolved_preset
from qfleet.bench.timing import Effort
from qfleet.command_line.foreign_names import did_you_mean
from qfleet.common.errors import ConfigError

ALL = "all"
NAMES = (*PARTS, ALL)


def main(args: argparse.Namespace, effort: Effort | None = None) -> int:
    """Measure `args.name` and print a table, or one JSON object when `args.json` is set.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: when there is no such benchmark, before anything is measured.
    """
    names = parts_of(args.name)
    report = run_parts(args.name, names, effort or Effort())
    print(json.dumps(report, indent=2) if args.json else report_text(report))
    return 0


def parts_of(name: str) -> list[str]:
    """The parts that a name stands for.

    Raises:
        ConfigError: with the names that exist, and the one that was probably meant.
    """
    if name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise ConfigError(f"there are benchmarks {', '.join(NAMES)}, but no {name!r}{hint}")
    return list(PARTS) if name == ALL else [name]


def run_parts(title: str, names: list[str], effort: Effort) -> dict[str, Any]:
    """Measure the parts one after the other; the record that is printed."""
    measurements: list[Measurement] = []
    for name in names:
        measurements += PARTS[name](effort)
    report = make_report(title, asdict(effort), measurements)
    if "learner" in names and "actor" in names:
        report["verdict"] = limiting_role(report["results"], resolved_preset("cartpole")[0])
    return report


def report_text(report: dict[str, Any]) -> str:
    """The record for people: figures, verdict, and what they depend on."""
    about = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    settings = report["settings"]
    lines = [
        table(report["results"]),
        "",
        *([report["verdict"], ""] if "verdict" in report else []),
        f"{about['cpu']}, {about['usable_cpus']} CPUs, {about['memory_gib']} GiB, load average "
        f"before {about['load_average_before']}",
        packages,
        f"{settings['repeats']} repeats of {settings['repeat_s']:g} s; `make bench` compares whole "
        "runs with other libraries",
    ]
    return "\n".join(lines)
