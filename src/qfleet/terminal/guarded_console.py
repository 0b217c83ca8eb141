"""A console that a full disk or a reader who left cannot end a run with.

Put around the chosen console by the composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qfleet.run_files.durable import DiskWatch
from qfleet.terminal.console import Console, EpisodeLine, RunStatus


class GuardedConsole:
    """`Console` whose failed writes `watch` counts."""

    def __init__(self, console: Console, watch: DiskWatch) -> None:
        self._console, self._watch = console, watch

    def _attempt(self, write: Callable[[], None]) -> None:
        self._watch.attempt("the console", write)

    def start(self, header: Sequence[str]) -> None:
        """See `Console`."""
        self._attempt(lambda: self._console.start(header))

    def update(self, status: RunStatus) -> None:
        """See `Console`."""
        self._attempt(lambda: self._console.update(status))

    def episode_line(self, line: EpisodeLine) -> None:
        """See `Console`."""
        self._attempt(lambda: self._console.episode_line(line))

    def message(self, text: str) -> None:
        """See `Console`."""
        self._attempt(lambda: self._console.message(text))

    def finish(self, block: str) -> None:
        """See `Console`."""
        self._attempt(lambda: self._console.finish(block))
