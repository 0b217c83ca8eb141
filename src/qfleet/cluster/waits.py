"""What may end any of the driver's waits for a role: a signal, a cluster that is gone, no progress.

The runtimes say once what is asked; every wait asks it several times a second, so that none can be
written that forgets it. Owned by the driver's main thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLICE_S = 0.25
"""How long a wait goes on before it asks again."""
Check = Callable[[float], None]
"""Called with the moment, on the monotonic clock, at which the wait began; raises to end it."""
_checks: list[Check] = []


@contextmanager
def asked_in_every_wait(check: Check) -> Iterator[None]:
    """Within the block every wait of this process asks `check`."""
    _checks.append(check)
    try:
        yield
    finally:
        _checks.remove(check)


def ask_checks(began_s: float) -> None:
    """Raise what one of the checks raises; for a wait that began at `began_s`."""
    for check in list(_checks):
        check(began_s)


class Wait:
    """One wait of at most `timeout_s`, in slices."""

    def __init__(self, timeout_s: float) -> None:
        self._began_s = time.monotonic()
        self._ends_s = self._began_s + timeout_s

    @property
    def slice_s(self) -> float:
        """How long to wait now."""
        return max(0.0, min(SLICE_S, self._ends_s - time.monotonic()))

    def goes_on(self) -> bool:
        """Ask the checks; False when the time is over."""
        ask_checks(self._began_s)
        return time.monotonic() < self._ends_s


def call_beside(
    call: Callable[[], object], check: Callable[[], None], ended: threading.Event | None = None
) -> None:
    """`call` in a thread, so that no wait inside Ray, which nothing ends, is the driver's.

    Args:
        call: What may wait.
        check: Called several times a second; raises when nothing can come of it any more.
        ended: The thread stays until then: the system kills what it has started when it is gone.

    Raises:
        BaseException: what `call` or `check` raises, or a signal.
    """
    done = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        done.set()
        if ended is not None:
            ended.wait()

    threading.Thread(target=run, name="call-beside", daemon=True).start()
    while not done.wait(SLICE_S):
        check()
    if raised:
        raise raised[0]
