"""From where the code that a configuration names may be imported.

A user's own words (TARGET, flags, a program's arguments) name modules of the working directory. A
file that was loaded names installed ones only: it may be somebody else's, and beside it may stand a
module of that name. The door checks the names; the factories call `search_working_directory`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_added: list[str] = []
"""What this module appended to `sys.path`."""
_is_forbidden = False


def _here() -> str:
    """The working directory; empty when it is gone, as a Ray job's is at the end."""
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return ""


def search_working_directory() -> None:
    """Make its modules importable, last: a user's `random.py` shadows nothing installed."""
    here = _here()
    if not _is_forbidden and here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        _added.append(here)


def forbid_working_directory() -> None:
    """For the rest of this process: nothing in the command named code of its own."""
    global _is_forbidden
    _is_forbidden = True


@contextlib.contextmanager
def installed_only() -> Iterator[None]:
    """Inside, modules come from where installed packages are, and from nowhere else."""
    global _is_forbidden
    before, path = _is_forbidden, list(sys.path)
    _is_forbidden, sys.path[:] = True, _installed_path()
    try:
        yield
    finally:
        _is_forbidden, sys.path[:] = before, path


def is_installed(module: str) -> bool:
    """Whether installed packages hold `module`; nothing is imported."""
    top = module.partition(".")[0]
    with installed_only():
        # Not importlib.util.find_spec: that believes what this process has imported already.
        finders = [f.find_spec for f in sys.meta_path if hasattr(f, "find_spec")]
        return any(find_spec(top, None) is not None for find_spec in finders)


def is_known(module: str) -> bool:
    """Whether an import of it runs no code of strangers: installed, or this program imported it."""
    is_imported = module in sys.modules and module != "__main__"
    return is_imported or is_installed(module)


def _installed_path() -> list[str]:
    """`sys.path` without what Python puts there for the working directory, and we.

    Python puts it first (`python -m`, a prompt, a script that lies there). Where it stands further
    behind somebody said so: PYTHONPATH, or a package installed in place (`pip install -e .`).
    """
    first, *others = sys.path or [""]
    kept = [] if first in ("", _here()) else [first]
    return [*kept, *(entry for entry in others if entry not in ("", *_added))]


def paths_for_roles() -> list[str]:
    """What `enter` takes in the processes of this run's roles."""
    return [] if _is_forbidden else [_here()]


def enter(paths: list[str]) -> None:
    """In a role's process: search the driver's directory too, or installed packages only.

    Ray puts the driver's directory first by itself.
    """
    global _is_forbidden
    sys.path.extend(path for path in paths if path not in sys.path)
    if not paths:
        _is_forbidden = True
        sys.path[:] = [entry for entry in sys.path if entry not in ("", _here())]
