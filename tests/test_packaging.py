"""What a user gets from the built wheel: the five packages, the presets, and nothing generic.

The wheel is built from the sdist, the sdist from a copy of the tree without the four links: what
works here works on a checkout made without link support.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("actors", "common", "learner", "replay_server")
CODE_SUFFIXES = (".py", ".yaml", ".typed", ".jinja")
SHIPPED_PRESETS = {"cartpole", "tutorial-state", "lunarlander", "generic"}

pytestmark = pytest.mark.timeout(120)

IMPORT_EVERYTHING = """
import sys
sys.path[:0] = [{target!r}]
sys.path += {site_packages!r}
import importlib, json, pkgutil
import qfleet
declared = {declared!r}
imported, missing = [], []
for info in pkgutil.walk_packages(qfleet.__path__, "qfleet."):
    if info.name.endswith("__main__"):
        continue
    try:
        module = importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] in declared:
            raise
        missing.append([info.name, error.name])
        continue
    assert module.__file__.startswith({target!r}), module.__file__
    imported.append(info.name)
# `generic` names no environment and is refused without one; the id is the same for all.
override = {{"env.id": "CartPole-v1"}}
presets = {{name: qfleet.Config.preset(name, override).preset_name for name in {presets!r}}}
print(json.dumps({{"imported": imported, "missing": missing, "presets": presets}}))
"""


class Built(NamedTuple):
    """The two archives and the folder that the wheel was installed into."""

    sdist: Path
    wheel: Path
    target: Path


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def copy_without_links(destination: Path) -> None:
    """The tree as a checkout without link support has it, less what no checkout holds."""
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "runs", "dist", "build", "*.egg-info", "*.log"
    )
    destination.mkdir()
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path.name in ("runs", "dist", "build", "src"):
            continue
        if path.is_dir():
            shutil.copytree(path, destination / path.name, ignore=ignore)
        else:
            shutil.copy2(path, destination)
    door = shutil.ignore_patterns(*ROOMS, "__pycache__")
    shutil.copytree(ROOT / "src" / "qfleet", destination / "src" / "qfleet", ignore=door)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built once for all tests of this file, far from the tree."""
    folder = tmp_path_factory.mktemp("packaging")
    tree, out, target = folder / "tree", folder / "out", folder / "site"
    copy_without_links(tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=tree)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--no-compile", "--target", str(target), str(wheel), cwd=folder)
    return Built(sdist, wheel, target)


def expected_package_files() -> set[str]:
    """Paths inside `qfleet/` that the wheel must hold: everything of the rooms and the door."""
    expected = set()
    for folder, prefix in [(ROOT / room, f"{room}/") for room in ROOMS]:
        expected |= {prefix + path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    door = ROOT / "src" / "qfleet"
    for path in door.rglob("*"):
        inner = path.relative_to(door)
        if inner.parts[0] not in ROOMS and path.suffix in CODE_SUFFIXES:
            expected.add(inner.as_posix())
    return expected


def test_wheel_holds_exactly_the_package(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()

    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qfleet"}
    package = {name.removeprefix("qfleet/") for name in names if name.startswith("qfleet/")}
    code = {name for name in package if Path(name).suffix in CODE_SUFFIXES}
    assert code == expected_package_files()


def test_wheel_carries_licences_and_command(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        text = archive.read(entry_points).decode()

    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY_LICENSES.md"}
    assert "qfleet = qfleet.command_line.program:run" in text


def test_sdist_holds_rooms_once_and_tests(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()

    names = [member.name.split("/", 1)[1] for member in members]
    assert len(names) == len(set(names))
    for room in ROOMS:
        assert f"{room}/__init__.py" in names
        assert not any(name.startswith(f"src/qfleet/{room}") for name in names)
    assert "tests/test_packaging.py" in names
    assert not any(member.issym() for member in members)


def test_installed_wheel_imports_every_module_and_loads_every_preset(built: Built) -> None:
    presets = sorted(path.stem for path in (built.target / "qfleet" / "settings").rglob("*.yaml"))
    paths = sysconfig.get_paths()
    code = IMPORT_EVERYTHING.format(
        target=str(built.target),
        site_packages=sorted({paths["purelib"], paths["platlib"]}),
        declared=["qfleet", "torch", "ray", "gymnasium", "numpy", "cv2", "msgpack", "pydantic"],
        presets=presets,
    )

    # -S: an editable install's .pth line would put the tree itself on the path.
    answer = json.loads(run(sys.executable, "-I", "-S", "-c", code, cwd=built.target.parent))

    assert set(presets) >= SHIPPED_PRESETS
    assert answer["presets"] == {name: name for name in presets}
    assert {f"qfleet.{room}" for room in ROOMS} <= set(answer["imported"])
    assert answer["missing"] == []
