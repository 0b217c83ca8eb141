"""The import arrows and the bans of the design, read from the source, plus what an import costs.

`common` <- `actors` | `replay_server` | `learner` <- `src/qfleet`; the rooms never import one
another; below the composition root nobody knows the configuration; Ray stays in the three shells
and the door; nothing of ours is pickled; every wait on Ray has a timeout. The walk covers whatever
modules exist, so a new file is checked without being named.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("actors", "learner", "replay_server")
FOLDERS = {"common": ROOT / "common", **{room: ROOT / room for room in ROOMS}}
DOOR = ROOT / "src" / "qfleet"

BELOW_THE_ROOT = ("cluster", "fleets")
"""Rooms of the door that get plans, as the roles do, instead of the configuration."""
PICKLERS = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
ALLOWED_OURS = {
    "common": ("common",),
    **{room: ("common", room) for room in ROOMS},
    **dict.fromkeys(("door", *BELOW_THE_ROOT), ("common", *ROOMS, "door")),
}


def modules() -> list[tuple[str, Path]]:
    """`(place, file)` of every module; the links in the door are not followed."""
    found = [(place, path) for place, folder in FOLDERS.items() for path in folder.rglob("*.py")]
    linked = set(FOLDERS)
    for path in DOOR.rglob("*.py"):
        room = path.relative_to(DOOR).parts[0]
        if room not in linked:
            found.append((room if room in BELOW_THE_ROOT else "door", path))
    return sorted(found)


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """`(line, absolute dotted name)` of every import at any depth of `tree`.

    `from a import b` yields `a.b`, because b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def place_of(name: str) -> str | None:
    """The room that a dotted name belongs to, `door`, or None when it is not ours."""
    parts = name.split(".")
    if parts[0] in FOLDERS:
        return f"{parts[0]} under its bare name"
    if parts[0] != "qfleet":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "door"


def is_shell(file_name: str) -> bool:
    """Whether a room's file belongs to its Ray shell."""
    return re.fullmatch(r"remote(_\w+)?\.py", file_name) is not None


def forbidden_import(place: str, file_name: str, name: str) -> str | None:
    """Why a module of `place` must not import `name`; None when it may."""
    top = name.split(".")[0]
    target = place_of(name)
    if target is not None and target not in ALLOWED_OURS[place]:
        return f"{place} must not import {target}"
    if name.startswith("qfleet.settings") and place != "door":
        return "below the composition root there are plans, no configuration"
    in_door = place in ("door", *BELOW_THE_ROOT)
    if top == "ray" and not in_door and not (place in ROOMS and is_shell(file_name)):
        return "ray belongs into the rooms' remote*.py and into src/qfleet"
    if top == "torch" and place == "replay_server":
        return "replay_server needs no torch"
    if top in PICKLERS:
        return "nothing of ours is pickled"
    return None


def forbidden_call(node: ast.Call) -> str | None:
    """Why this call is banned: pickle by another name, or a wait on Ray without an end."""
    if not (isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
        return None
    called = f"{node.func.value.id}.{node.func.attr}"
    arguments = {keyword.arg: keyword.value for keyword in node.keywords}
    if called in ("torch.load", "torch.save"):
        return f"{called} pickles; use safetensors or wire.py"
    pickle_allowed = arguments.get("allow_pickle")
    if pickle_allowed is not None and ast.unparse(pickle_allowed) != "False":
        return f"{called} with allow_pickle"
    if called in ("ray.get", "ray.wait"):
        timeout = arguments.get("timeout")
        if timeout is None or ast.unparse(timeout) == "None":
            return f"{called} without a timeout waits for ever"
    return None


def module_name(place: str, path: Path) -> str:
    """The dotted name that a file is imported under."""
    folder = FOLDERS.get(place, DOOR)
    inner = [
        *([place] if place in FOLDERS else []),
        *path.relative_to(folder).with_suffix("").parts,
    ]
    return ".".join(["qfleet", *(part for part in inner if part != "__init__")])


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of our modules each one imports, at any depth: also within its functions.

    Args:
        sources: Source text by dotted name.
    """
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        wanted = set()
        for _, imported in imports(ast.parse(source), name.rpartition(".")[0]):
            # `from a import b`: b is a module of ours, or a name in a.
            target = imported if imported in sources else imported.rpartition(".")[0]
            if target in sources and target != name:
                wanted.add(target)
        graph[name] = wanted
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, the first repeated at the end; [] when none."""
    finished: set[str] = set()
    for start in sorted(graph):
        path: list[str] = []
        waiting = [(start, iter(sorted(graph[start])))]
        while waiting:
            name, rest = waiting[-1]
            if name not in path:
                path.append(name)
            following = next((n for n in rest if n not in finished), None)
            if following in path:
                return [*path[path.index(following) :], following]
            if following is None:
                finished.add(name)
                path.pop()
                waiting.pop()
            else:
                waiting.append((following, iter(sorted(graph[following]))))
    return []


def violations(place: str, file_name: str, source: str) -> list[str]:
    """Everything in one module that breaks a rule, as `line: reason`."""
    package = "qfleet" if place == "door" else f"qfleet.{place}"  # of relative imports
    tree = ast.parse(source)
    found = []
    for line, name in imports(tree, package):
        reason = forbidden_import(place, file_name, name)
        if reason:
            found.append(f"{line}: imports {name}: {reason}")
        if name.startswith("ray.") and name.split(".")[1] in ("get", "wait"):
            found.append(f"{line}: imports {name} bare, which hides it from the timeout check")
    for node in ast.walk(tree):
        reason = forbidden_call(node) if isinstance(node, ast.Call) else None
        if reason:
            found.append(f"{node.lineno}: {reason}")
        if isinstance(node, ast.alias) and node.name == "ray" and node.asname:
            found.append(f"{node.lineno}: ray under another name hides from the timeout check")
    return found


@pytest.mark.parametrize(
    ("place", "file_name", "source"),
    [
        ("common", "x.py", "from qfleet.actors import policy"),
        ("common", "x.py", "from qfleet import learner"),
        ("common", "x.py", "from ..learner import loop"),
        ("actors", "x.py", "def f():\n    from qfleet.learner.loss import mse"),
        ("actors", "x.py", "from qfleet.command_line.cli import main"),
        ("learner", "x.py", "def f():\n    from qfleet.settings.config import Config"),
        ("fleets", "x.py", "from qfleet.settings import config"),
        ("cluster", "x.py", "from ..settings.plans import run_plans"),
        ("learner", "x.py", "import qfleet.replay_server.storage"),
        ("learner", "x.py", "import common.types"),
        ("learner", "x.py", "import ray"),
        ("common", "remote.py", "import ray"),
        ("replay_server", "remote.py", "import torch"),
        ("door", "x.py", "import pickle"),
        ("door", "x.py", "from ray import cloudpickle, get"),
        ("door", "x.py", "import ray as r"),
        ("learner", "x.py", "torch.load(path)"),
        ("learner", "x.py", "np.load(path, allow_pickle=True)"),
        ("door", "x.py", "ray.get(ref)"),
        ("door", "x.py", "ray.wait(refs, timeout=None)"),
    ],
)
def test_checker_planted_violation_is_found(place: str, file_name: str, source: str) -> None:
    assert violations(place, file_name, source)


@pytest.mark.parametrize(
    ("place", "file_name", "source"),
    [
        ("actors", "remote.py", "import ray\nfrom qfleet.common import wire\nfrom . import policy"),
        ("door", "x.py", "from qfleet.learner.remote import R\nray.get(ref, timeout=limit_s)"),
        ("door", "x.py", "from qfleet.settings.config import Config"),
        ("fleets", "x.py", "import ray\nfrom qfleet.cluster import roles"),
        ("replay_server", "x.py", "import numpy as np\nnp.load(path, allow_pickle=False)"),
        ("actors", "x.py", "def f():\n    import torch"),
    ],
)
def test_checker_allowed_source_passes(place: str, file_name: str, source: str) -> None:
    assert violations(place, file_name, source) == []


def test_modules_walk_reaches_every_place() -> None:
    assert {place for place, _ in modules()} == {*FOLDERS, "door", *BELOW_THE_ROOT}


def test_tree_keeps_the_import_arrows() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{violation}"
        for place, path in modules()
        for violation in violations(place, path.name, path.read_text(encoding="utf-8"))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"a": "import b", "b": "import c", "c": ""}, []),
        ({"a": "import b", "b": "def f():\n    import a"}, ["a", "b", "a"]),
        (
            {"a.x": "", "a.y": "from . import z", "a.z": "from .y import f"},
            ["a.y", "a.z", "a.y"],
        ),
        ({"d": "import a", "a": "from b import c", "b": "from d import e"}, ["a", "b", "d", "a"]),
        ({"a": "import b, c", "b": "import c", "c": ""}, []),
        ({"a": "import a"}, []),
    ],
)
def test_circle_planted_one_is_found(sources: dict[str, str], found: list[str]) -> None:
    assert circle(import_graph(sources)) == found


def test_tree_has_no_import_circle_also_through_lazy_imports() -> None:
    sources = {module_name(place, path): path.read_text("utf-8") for place, path in modules()}

    assert circle(import_graph(sources)) == []


def run_python(code: str) -> str:
    """What `code` prints in a fresh interpreter that sees this tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_import_of_the_door_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, qfleet, qfleet.command_line.cli\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )

    assert run_python(code) == "[]"


def dotted_names(*places: str, shells: bool) -> list[str]:
    """Import names of the rooms' modules, with or without the Ray shells."""
    names = []
    for place, path in modules():
        if place not in places or (is_shell(path.name) and not shells):
            continue
        names.append(module_name(place, path))
    return names


def test_import_without_ray_works_outside_the_shells() -> None:
    names = ["qfleet", "qfleet.command_line.cli", *dotted_names(*FOLDERS, shells=False)]
    code = (
        "import sys, importlib; sys.modules['ray'] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "import qfleet\n"
        "for name in qfleet.__all__: getattr(qfleet, name)\n"
        "print('fine')"
    )

    assert run_python(code) == "fine"


def test_replay_server_without_torch_imports_its_shell_too() -> None:
    names = dotted_names("replay_server", shells=True)
    code = (
        "import sys, importlib; sys.modules['torch'] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print('fine')"
    )

    assert run_python(code) == "fine"


def test_actor_modules_load_no_torch() -> None:
    names = dotted_names("actors", shells=True)
    code = (
        "import sys, importlib\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )

    assert run_python(code) == "False"


def test_driver_of_a_fleet_loads_no_torch() -> None:
    names = [
        "qfleet.training",
        "qfleet.fleets.async_loop",
        "qfleet.fleets.ray_fleet",
        "qfleet.learner.remote",
    ]
    code = (
        "import sys, importlib\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )

    assert run_python(code) == "False"
