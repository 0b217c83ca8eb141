"""Each check of `qfleet doctor` on machines that lack something."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.metadata
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qfleet.commands import doctor as commands_doctor
from qfleet.commands.doctor import Check, check_package, container_limit_bytes, report, version_key


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the import of torch and Ray, which takes seconds."""
    monkeypatch.setattr(commands_doctor, "PACKAGES", {"numpy": ("numpy", "2.0")})
    monkeypatch.setattr(commands_doctor, "check_device", lambda: Check("device", "ok", "cpu"))


def test_packages_are_those_of_pyproject() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.DOTALL)
    assert listed is not None
    wanted = dict(re.findall(r'"([\w-]+)(?:\[[\w-]+\])?>=([\d.]+)', listed[1]))

    assert {name: low for name, (_, low) in commands_doctor.PACKAGES.items()} == wanted


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("2.9", "2.10"), ("2.13.0+cpu", "2.14"), ("1.2.3rc1", "1.2.4"), ("4.11", "5.0.0.93")],
)
def test_version_key_orders_versions(lower: str, higher: str) -> None:
    assert version_key(lower) < version_key(higher)
    assert not version_key(higher) < version_key(lower)


def test_version_key_ignores_trailing_zeros() -> None:
    assert version_key("2") == version_key("2.0") == version_key("2.0.0") == (2,)
    assert version_key("10.20.0") == (10, 20)


def test_check_package_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        commands_doctor,
        "PACKAGES",
        {
            "numpy": ("numpy", "2.0"),
            "pydantic": ("pydantic", "999.1"),
            "absent-package": ("absent_package", "1.0"),
        },
    )

    assert check_package("numpy").state == "ok"
    old = check_package("pydantic")
    assert (old.state, old.remedy) == ("fail", 'pip install "pydantic>=999.1"')
    assert old.found.endswith("needs 999.1")
    assert check_package("absent-package") == Check(
        "absent-package", "fail", "not installed", 'pip install "absent-package>=1.0"'
    )


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("libGL.so.1: cannot open shared object file", "apt-get install libgl1 libglib2.0-0"),
        ("undefined symbol: x", 'pip install "opencv-python>=4.11" --force-reinstall'),
    ],
)
def test_check_package_that_does_not_import_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, message: str, remedy: str
) -> None:
    def broken(name: str) -> Any:
        raise ImportError(message)

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.0")
    monkeypatch.setattr(importlib, "import_module", broken)

    check = check_package("opencv-python")

    assert check.state == "fail"
    assert message in check.found
    assert remedy in check.remedy


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 1), "fail"), ((3, 11, 0), "ok"), ((3, 14, 0), "fail")]
)
def test_check_python_range(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], state: str
) -> None:
    monkeypatch.setattr(commands_doctor.sys, "version_info", version)

    check = commands_doctor.check_python()

    assert check.state == state
    assert ("3.11, 3.12 or 3.13" in check.remedy) == (state == "fail")


def test_check_memory_and_shared_memory_warn_with_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_doctor, "container_limit_bytes", lambda: 2**30)
    usage = SimpleNamespace(total=64 * 2**20, free=2**40)
    monkeypatch.setattr(commands_doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(commands_doctor, "SHARED_MEMORY", Path("/"))

    memory, shared = commands_doctor.check_memory(), commands_doctor.check_shared_memory()

    assert (memory.state, memory.found) == ("warn", "1.0 GiB free")
    assert (shared.state, shared.found) == ("warn", "0.06 GiB in /")
    assert "--shm-size=2gb" in shared.remedy


def test_check_cores_warns_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert commands_doctor.check_cores().state == "warn"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert commands_doctor.check_cores() == Check("cores", "ok", "2")


def test_container_limit_reads_both_versions(tmp_path: Path) -> None:
    assert container_limit_bytes(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert container_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert container_limit_bytes(tmp_path) == 2**30


def test_check_display_says_what_play_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    check = commands_doctor.check_display()

    assert (check.state, check.found) == ("ok", "none: `qfleet play` records videos instead")


@pytest.mark.usefixtures("_quick")
def test_main_healthy_machine_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert commands_doctor.main(argparse.Namespace(json=True)) == 0

    content = json.loads(capsys.readouterr().out)
    assert content["able_to_train"] is True
    names = [check["name"] for check in content["checks"]]
    assert names == [
        *("numpy", "python", "cores", "memory", "shared memory", "ray.lean", "device"),
        "display",
        "run directory",
    ]
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


@pytest.mark.usefixtures("_quick")
def test_main_unwritable_directory_exits_2_with_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(commands_doctor.tempfile, "NamedTemporaryFile", read_only)

    assert commands_doctor.main(argparse.Namespace(json=False)) == 2

    printed = capsys.readouterr().out
    assert "Read-only file system" in printed
    assert "--run-dir" in printed
    assert printed.splitlines()[-1] == "cannot train: run directory"


def test_report_aligns_and_puts_remedies_below() -> None:
    text = report([Check("a", "ok", "1"), Check("long name", "warn", "2", "do this")])

    assert text == (
        "ok    a               1\n"
        "warn  long name       2\n"
        "                      -> do this\n"
        "\n"
        "ready: try `qfleet train`"
    )


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        ("2.60.0", "ok", "without dashboard, autoscaler and log monitor"),
        ("2.61.0", "warn", "Ray 2.61.0 starts in full"),
    ],
)
def test_check_lean_start_says_what_the_installed_ray_does(monkeypatch, version, state, words):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check = commands_doctor.check_lean_start()
    assert (check.name, check.state) == ("ray.lean", state)
    assert words in check.found
