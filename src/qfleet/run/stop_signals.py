"""Ctrl-C, SIGTERM and SIGHUP as a request to stop, noticed between two steps of the main loop.

Installed by `train` before anything is started, and again after Ray, which installs a SIGTERM
handler of its own. The handler only takes a note: checkpointing inside it would cut into whatever
was running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import psutil

PATIENCE_S = 4.0
"""After a signal no single wait for a role lasts longer: somebody waits for the end."""
BREAK_AFTER_S = 5.0
"""After a signal a local run that gets nowhere for so long is broken off."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heard_signals() -> list[int]:
    """The signals that ask for the end; without SIGHUP where nohup has it ignored."""
    is_under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [n for n in _SIGNALS if n != signal.SIGHUP or not is_under_nohup]


class HangBrokenError(BaseException):
    """Raised into what hangs after a signal; no `except Exception` on the way keeps it."""


class StopSignal:
    """Which signal asked for the end, if any; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._noted_at_s = 0.0
        self._interrupts = False
        self._progress: Callable[[], object] | None = None
        self._seen: object = None

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
            for number in heard_signals():
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.number is not None:
            # The user insists. The previous checkpoint is whole, and so it stays.
            _kill_children()
            os._exit(128 + number)
        self.number, self._noted_at_s = number, time.monotonic()
        if self._interrupts:
            raise SystemExit(128 + number)
        if self._progress is not None:
            self._seen = self._progress()
            signal.setitimer(signal.ITIMER_REAL, BREAK_AFTER_S)

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

    @contextlib.contextmanager
    def breaking_hangs(self, progress: Callable[[], object]) -> Iterator[None]:
        """Within the block, what has got nowhere for some seconds after a signal is broken off.

        Everything of a local run happens in one thread, an environment's step too, and nobody else
        could end it. `progress` changes while there is any; in another thread than the main one
        nothing can be broken off.

        Raises:
            HangBrokenError: out of whatever hangs.
        """
        with contextlib.suppress(ValueError):  # "signal only works in main thread"
            signal.signal(signal.SIGALRM, self._look)
        self._progress = progress
        try:
            yield
        finally:
            self._progress = None
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _look(self, number: int, frame: FrameType | None) -> None:
        """The alarm's handler."""
        if self._progress is None:
            return
        signal.setitimer(signal.ITIMER_REAL, BREAK_AFTER_S)
        seen, self._seen = self._seen, self._progress()
        if seen == self._seen:
            raise HangBrokenError

    def end_wait(self, began_s: float) -> None:
        """End a wait that began at `began_s` when the signal came `PATIENCE_S` ago and it goes on.

        Raises:
            SystemExit: with the signal's exit code.
        """
        if self.number is None:
            return
        if time.monotonic() - max(began_s, self._noted_at_s) > PATIENCE_S:
            raise SystemExit(self.exit_code)


def _kill_children() -> None:
    """End what was started here, but for the guard, which cleans up after it once we are gone."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("guard_process.py" in word for word in child.cmdline()):
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
