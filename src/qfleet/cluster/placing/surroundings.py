"""What the roles of a run find around them; made by the runtimes, beside the plans."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

Waiting = Callable[[], AbstractContextManager[None]]
"""Around the wait for roles that start: a signal may end it, but must not cut into a creation."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Of all roles of one run."""

    name: str = ""
    """A person recognises the run by it; before each Ray actor's name. Empty: the run's id."""
    is_own_ray: bool = False
    """Whether nobody else uses the cluster: the run has started it."""
    logs: Path | None = None
    """The folder that gets what roles write; None: nowhere."""
    waiting: Waiting = nullcontext
    tell: Tell = print
    """Given what a user should know while roles wait for room."""


NOTHING_AROUND = Surroundings()
