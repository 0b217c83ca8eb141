"""What every program here shares: its flags, the table it prints and the JSON file it writes.

    from machine import finish, make_parser

The record's shape is `qfleet.bench.bench_record.make_report`'s, so `qfleet bench --json` writes the
same; `report.py` turns all of them into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qfleet.bench.bench_record import Measurement, make_report, table

RESULTS = "benchmarks/results"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flag that all programs have."""
    first_line = (description or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=first_line)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"write the record, e.g. {RESULTS}/NAME.json"
    )
    return parser


def finish(
    benchmark: str,
    arguments: argparse.Namespace,
    measurements: Sequence[Measurement],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Print the table and write the record to `--json`; returns the record."""
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    report = make_report(benchmark, settings, measurements)
    report["command"] = command_line(benchmark, sys.argv[1:])
    report["notes"] = list(notes)
    print(table(report["results"]))
    for note in notes:
        print(note)
    if arguments.json is not None:
        write_json(arguments.json, report)
    return report


def command_line(benchmark: str, words: Sequence[str]) -> str:
    """How to repeat it; where this run wrote its record is left out."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--json"):
            skip = word == "--json"
        else:
            kept.append(word)
    return " ".join([f"python benchmarks/{benchmark}.py", *kept])


def write_json(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def latency(name: str, values_ms: Sequence[float], **detail: Any) -> Measurement:
    """Latencies of single events in ms, with p99 beside the median."""
    about = {"p99": round(percentile(values_ms, 99), 3), **detail}
    return Measurement(name, "ms", tuple(values_ms), about)
