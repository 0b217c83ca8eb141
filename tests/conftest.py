"""What every test needs, in this process and in those that it starts."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

from qfleet.common import user_code

_CACHE = tempfile.TemporaryDirectory(prefix="qfleet-test-cache-")
# Compiled packages of this machine's user must not decide which bits a test computes.
os.environ["QFLEET_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def search_path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role's shell in this process must not decide where later tests find their modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_is_forbidden", user_code._is_forbidden)
    monkeypatch.setattr(user_code, "_added", list(user_code._added))
