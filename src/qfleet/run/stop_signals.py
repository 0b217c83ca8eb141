"""Ctrl-C, SIGTERM and SIGHUP as a request to stop, noticed between two steps of the main loop.

Installed by `train` before anything is started, and again after Ray, which installs a SIGTERM
handler of its own. The handler only takes a note: checkpointing inside it would cut into whatever
was running.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Which signal asked for the end, if any; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._interrupts = False

    @property
    def name(self) -> str | None:
        """For example `SIGINT`; None while nobody asked."""
        return None if self.number is None else signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 while nobody asked."""
        return 0 if self.number is None else 128 + self.number

    def listen(self) -> None:
        """Install the handler for all signals; in another thread than the main one do nothing."""
        with contextlib.suppress(ValueError):  # "signal only works in main thread"
            for number in _SIGNALS:
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.number is not None:
            # The user insists. The previous checkpoint is whole, and so it stays.
            _kill_children()
            os._exit(128 + number)
        self.number = number
        if self._interrupts:
            raise SystemExit(128 + number)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within the block a signal also raises `SystemExit`: nothing is there to be kept yet.

        One that came before raises at once.
        """
        if self.number is not None:
            raise SystemExit(self.exit_code)
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False


def _kill_children() -> None:
    """End the Ray that we started, if any: its helpers notice our end only after a while."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@contextlib.contextmanager
def noticed() -> Iterator[StopSignal]:
    """Handlers in place inside the block, the former ones after it; main thread only.

    In another thread signals cannot be handled, and the block runs without.
    """
    stop = StopSignal()
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    stop.listen()
    try:
        yield stop
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in former.items():
                signal.signal(number, handler)
