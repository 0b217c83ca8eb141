"""What a role's process does about signals; called first of all by every Ray shell."""

from __future__ import annotations

import contextlib
import signal


def die_of_sigterm() -> None:
    """SIGTERM ends this process at once, as SIGKILL does.

    Ray's own handler only ends the main thread: the loop in another one would play on, answer
    nothing, and write to whatever is still there.
    """
    with contextlib.suppress(ValueError):  # "signal only works in main thread": a test's thread
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
