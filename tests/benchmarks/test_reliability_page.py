"""docs/reliability.md is what was found, and nothing in it is beyond its bound."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/, which is a folder of programs and no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def reliability(load) -> ModuleType:
    return load("reliability_page")


def test_committed_page_is_what_was_found_within_every_bound(load, reliability) -> None:
    """After a change of the page: python benchmarks/faults.py page."""
    found = reliability.read_results()
    faults = load("faults")
    waits = [fault.__name__ for fault in faults.WAITS]

    assert set(waits) <= set(found) <= {*waits, *(part.__name__ for part in faults.LOSSES)}
    assert (ROOT / "docs" / "reliability.md").read_text() == reliability.page(found, waits)
    assert [row for rows in found.values() for row in rows if reliability.misses(row)] == []


@pytest.mark.parametrize(
    ("row", "is_missed"),
    [
        ({"within_s": 60.0, "seconds": 60.0}, False),
        ({"within_s": 60.0, "seconds": 60.1}, True),
        ({"within_s": 60.0, "seconds": float("inf")}, True),
        ({"wrong": 0, "unknown": 70}, False),
        ({"wrong": 1, "unknown": 0}, True),
        ({"percent": 5, "of fault-free": 0.8, "restarts and incidents": 0}, False),
        ({"percent": 5, "of fault-free": 0.79, "restarts and incidents": 0}, True),
        ({"percent": 5, "of fault-free": 1.0, "restarts and incidents": 1}, True),
        ({"kind": "chunk", "MiB": 16.0}, False),
        ({"kind": "chunk", "MiB": 16.1}, True),
    ],
)
def test_row_beyond_its_bound_is_missed(reliability, row, is_missed) -> None:
    assert reliability.misses(row) is is_missed


def test_wait_that_never_ended_says_so(reliability) -> None:
    row = {"name": "F", "runtime": "ray", "within_s": 15.0, "seconds": float("inf"), "answer": "no"}

    assert "| F | ray | never | 15 | no |" in reliability.page({"fault": [row]}, ["fault"])
