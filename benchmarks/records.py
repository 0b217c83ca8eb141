"""The JSON records of benchmarks/results, for the programs that make pages from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record by its file's name; one that is not JSON ends the program."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            sys.exit(f"{path.name} is not a record: {error}")
    return records


class Figures:
    """Rows of the records, each found by record and name.

    Raises:
        SystemExit: when one is missing, with the command that makes it.
    """

    def __init__(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        self._records = records

    def record(self, benchmark: str) -> Mapping[str, Any]:
        """A whole record."""
        if benchmark not in self._records:
            command = f"python benchmarks/{benchmark}.py"
            sys.exit(f"no record: {command} --json benchmarks/results/{benchmark}.json")
        return self._records[benchmark]

    def rows(self, benchmark: str) -> list[Mapping[str, Any]]:
        """All rows of a record."""
        return list(self.record(benchmark)["results"])

    def row(self, benchmark: str, name: str) -> Mapping[str, Any]:
        """The row of that name."""
        for row in self.rows(benchmark):
            if row["name"] == name:
                return row
        sys.exit(f"{benchmark}.json has no row {name!r}: run benchmarks/{benchmark}.py again")

    def median(self, benchmark: str, name: str) -> float:
        """Its figure."""
        return float(self.row(benchmark, name)["median"])

    def detail(self, benchmark: str, name: str, key: str) -> float:
        """A figure beside it."""
        return float(self.row(benchmark, name)["detail"][key])
