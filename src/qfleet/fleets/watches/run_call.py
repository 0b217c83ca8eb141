"""The call that a role works within, from its start to its end; made again when it never came.

Used by the asynchronous loop for the learner and by the actors' watch. Such a call is answered at
the very end, so its silence says nothing: the role's counters tell whether it has begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

LOST_AFTER_S = 0.2
"""A role that says twice, so long apart, that it has not begun has not heard the call."""


class RunCall:
    """One call at a time; the answer to an earlier one is let go."""

    def __init__(self, call: Callable[[], Any]) -> None:
        """Make the call; `call` may be made again."""
        self._call = call
        self.repeat()

    def repeat(self) -> None:
        """Ray lost it; one that had come all the same is answered before this one."""
        self.ref = self._call()
        self._idle_since_s = math.inf

    def repeat_unless(self, has_begun: bool) -> None:
        """The role has just said whether it has begun."""
        now_s = time.monotonic()
        self._idle_since_s = min(now_s, self._idle_since_s)
        if not has_begun and now_s - self._idle_since_s > LOST_AFTER_S:
            self.repeat()
