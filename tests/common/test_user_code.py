"""Where modules come from: installed ones first, the working directory only when it may."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qfleet.common import user_code
from qfleet.run_files.find_runs import shorten


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of its own, and the state of a fresh process."""
    (tmp_path / "lies_here.py").write_text("")
    (tmp_path / "gymnasium.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(user_code, "_is_forbidden", False)
    monkeypatch.setattr(user_code, "_added", [])
    return tmp_path


def test_search_working_directory_comes_last_and_once(elsewhere: Path) -> None:
    before = list(sys.path)

    user_code.search_working_directory()
    user_code.search_working_directory()

    assert sys.path == [*before, str(elsewhere)]


@pytest.mark.parametrize("first", ["", "here", None])
def test_is_installed_does_not_look_into_the_working_directory(
    elsewhere: Path, first: str | None
) -> None:
    """Where Python itself put it first (a prompt, `python -m`, a script there), and after us."""
    if first is not None:
        sys.path.insert(0, str(elsewhere) if first else first)
    user_code.search_working_directory()

    assert not user_code.is_installed("lies_here")
    assert not user_code.is_installed("lies_here.deeper")
    assert not user_code.is_known("__main__")
    assert user_code.is_installed("gymnasium")
    assert user_code.is_installed("gymnasium.envs.classic_control")
    assert "lies_here" not in sys.modules


def test_is_installed_accepts_a_package_installed_in_place(elsewhere: Path) -> None:
    sys.path.append(str(elsewhere))  # PYTHONPATH, or the .pth of `pip install -e .`

    assert user_code.is_installed("lies_here")


def test_is_known_accepts_what_the_program_has_imported_and_is_installed_does_not(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lies_here", type(sys)("lies_here"))

    assert user_code.is_known("lies_here")
    assert not user_code.is_installed("lies_here")
    assert not user_code.is_known("lies_here_too")
    assert user_code.is_known("gymnasium")


def test_installed_only_hides_the_working_directory_and_puts_the_path_back(
    elsewhere: Path,
) -> None:
    sys.path.insert(0, "")
    before = list(sys.path)

    with user_code.installed_only():
        user_code.search_working_directory()
        inside = list(sys.path)
        with pytest.raises(ModuleNotFoundError):
            import lies_here  # type: ignore[import-not-found]  # noqa: F401

    assert "" not in inside
    assert str(elsewhere) not in inside
    assert sys.path == before


def test_roles_search_the_drivers_directory_last_or_not_at_all(elsewhere: Path) -> None:
    assert user_code.paths_for_roles() == [str(elsewhere)]
    with user_code.installed_only():
        assert user_code.paths_for_roles() == []
    before = list(sys.path)

    user_code.enter(["/driver"])
    assert sys.path == [*before, "/driver"]

    sys.path.insert(0, str(elsewhere))  # as Ray does
    user_code.enter([])
    user_code.search_working_directory()
    assert sys.path == [*before, "/driver"]


def test_working_directory_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray removes the directory of a job before its command has ended."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert user_code.paths_for_roles() == [""]
    assert user_code.is_installed("gymnasium")
    assert shorten(tmp_path / "run") == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
