"""What every test of the learner's room needs: a package cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees or changes the packages of this machine's user."""
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
