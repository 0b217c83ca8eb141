"""Rules about the Ray cluster that can be told before one is asked.

Called by `config_checks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from qfleet.settings.config import Config
from qfleet.settings.problems import Problem

SHIPPED_SUFFIXES = (".py", ".whl")


def _check_ship(config: Config) -> Iterator[Problem]:
    """Ray would find a missing file only after it has connected, and say so in its own words."""
    for name in config.ray.ship:
        path = Path(name)
        if "://" in name or path.is_dir():
            continue
        if not path.is_file():
            found = "is not there"
        elif path.suffix not in SHIPPED_SUFFIXES:
            found = f"is no {', '.join(SHIPPED_SUFFIXES)} file or folder"
        else:
            continue
        yield Problem(
            "ray.ship",
            name,
            f"{found} (looked from {Path.cwd()})",
            "name the module's own file or its package's folder",
        )


RAY_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (_check_ship,)
