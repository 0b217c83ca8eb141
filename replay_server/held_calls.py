"""Calls that the rate limiter holds back: each waits in its thread until its turn has come.

Called by the shard's shell, one object for inserts and one for samples.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable


class HeldCalls:
    """A queue in front of one side of a shard, oldest call first; used with the shard's lock held.

    Whoever waits lets go of the lock. Only the oldest is woken when something has changed: with
    many waiting, each change would else cost all of their threads.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._waiting: collections.deque[threading.Condition] = collections.deque()
        self._ended_s = 0.0
        self._since_s: float | None = None

    def let_through(
        self,
        allowed: Callable[[], bool],
        released: Callable[[], bool],
        timeout_s: float | None = None,
    ) -> float | None:
        """Wait until it is this call's turn and `allowed`, or until `released`, out of turn.

        Returns:
            Seconds that the call was held back, 0.0 when it may go on at once; None when it may not
            after `timeout_s` (None: however long it takes).
        """
        if released() or (not self._waiting and allowed()):
            return 0.0
        began_s = time.monotonic()
        turn = threading.Condition(self._lock)
        self._waiting.append(turn)
        if self._since_s is None:
            self._since_s = time.monotonic()

        def may_go() -> bool:
            return released() or (self._waiting[0] is turn and allowed())

        try:
            may_go_on = turn.wait_for(may_go, timeout_s)
            return time.monotonic() - began_s if may_go_on else None
        finally:
            self._waiting.remove(turn)
            if not self._waiting:
                self._ended_s, self._since_s = self.held_s, None
            self.wake()  # this call is about to change something, or the next one may fit

    def wake(self) -> None:
        """The limiter may think anew."""
        if self._waiting:
            self._waiting[0].notify()

    def wake_all(self) -> None:
        """Calls may have been released."""
        for turn in self._waiting:
            turn.notify()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def held_s(self) -> float:
        """Seconds during which at least one call was held back, the present wait included."""
        if self._since_s is None:
            return self._ended_s
        return self._ended_s + time.monotonic() - self._since_s
