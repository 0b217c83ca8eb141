"""Modules that a thread imports are there for the main thread; one that fails fails there."""

from __future__ import annotations

import sys

import pytest

from qfleet.cluster.background_imports import import_in_background

TIMEOUT_S = 30.0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("qf_first", "qf_broken", "qf_last"):
        sys.modules.pop(name, None)


def test_modules_are_imported_in_order(folder):
    (folder / "qf_first.py").write_text("FOUND = []\n")
    (folder / "qf_last.py").write_text("import qf_first\nqf_first.FOUND.append('last')\n")

    import_in_background("qf_first", "qf_last").join(TIMEOUT_S)

    assert sys.modules["qf_first"].FOUND == ["last"]


def test_module_that_fails_ends_the_thread_and_fails_again_for_its_user(folder):
    (folder / "qf_broken.py").write_text("raise RuntimeError('broken')\n")
    (folder / "qf_last.py").write_text("")

    import_in_background("qf_broken", "qf_last").join(TIMEOUT_S)

    assert "qf_last" not in sys.modules
    with pytest.raises(RuntimeError, match="broken"):
        import qf_broken  # noqa: F401
