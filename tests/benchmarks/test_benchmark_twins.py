"""Every speed in the committed records names tests that exist: its learning twin."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SPEEDS = {
    "solve_time",  # counts confirmed solutions: it is the twin of all
    "sweep",
    "lockstep_grid",
    "resume_points",
    "memory",
    "call_cost",
    "publishing_cost",
    "checkpoint_cost",
    "replay_saturation",
}


def load_report():
    """A module of benchmarks/, which is a folder of programs and no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("report")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


REPORT = load_report()


@pytest.mark.parametrize("twin", sorted({t for tests in REPORT.TWINS.values() for t in tests}))
def test_twin_is_a_test_that_exists(twin):
    path, name = twin.split("::")

    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_record_of_a_speed_has_a_twin():
    records = [json.loads(p.read_text()) for p in (ROOT / "benchmarks" / "results").glob("*.json")]
    names = {record["benchmark"] for record in records if "benchmark" in record}

    assert names - NOT_SPEEDS - set(REPORT.TWINS) == set()


def test_page_is_what_the_records_say():
    records = REPORT.read_records(ROOT / "benchmarks" / "results")

    assert (ROOT / "docs" / "benchmarks.md").read_text() == REPORT.page(records)
