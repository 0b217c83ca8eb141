"""The oracle itself: what it calls wrong in books that are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import ledger

PLAYED = {(0, 0, step) for step in range(10)}
RIGHT = {
    "produced": 10,
    "resident": 6,
    "evicted": 2,
    "rejected": 0,
    "dropped": 0,
    "lost": 2,
    "in_flight": 0,
    "at_least": [],
}


@pytest.fixture
def unaccounted(monkeypatch):
    def count(rows, **changes):
        monkeypatch.setattr(ledger, "remembered", lambda run: rows)
        return ledger.unaccounted({**RIGHT, **changes}, Path(), PLAYED)

    return count


def test_right_books(unaccounted):
    assert unaccounted(sorted(PLAYED)[:6]) == (0, 0)


def test_what_only_at_least_covers_is_unknown_and_not_wrong(unaccounted):
    rows = sorted(PLAYED)[:6]
    assert unaccounted(rows, produced=9, lost=1, at_least=["produced", "lost"]) == (0, 1)
    assert unaccounted(rows, produced=9, lost=1) == (1, 1)


def test_wrong_books(unaccounted):
    rows = sorted(PLAYED)[:6]
    assert unaccounted([*rows[:5], (7, 7, 7)])[0] == 1  # nobody played it
    assert unaccounted([*rows[:5], rows[0]])[0] == 1  # there twice
    assert unaccounted(rows[:5])[0] == 1  # said to be there
    assert unaccounted(rows, lost=3)[0] == 1  # the sum
    assert unaccounted(rows, produced=11, lost=3)[0] == 1  # more than was played
    assert unaccounted(rows, produced=11, lost=3, at_least=["produced"])[0] == 1


def test_played_is_what_actors_wrote(tmp_path):
    (tmp_path / "0").write_text("11\n0 0\n0 1\n")
    (tmp_path / "1").write_text("12\n0 0\n")
    assert ledger.played(tmp_path, {12}) == {(0, 0, 0), (0, 0, 1)}
