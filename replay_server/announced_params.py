"""What the learner has announced of its parameters, for a shard to hand on to actors.

Called by the shard's shell, with its lock held.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from qfleet.common.types import ParamsOffer

FRESH_S = 0.1
"""Nobody waits for a version while the announcement of the one before is younger than this."""
COMING_S = 0.2
"""How long at most the announcement of a version is waited for that was published already."""


class AnnouncedParams:
    """The newest announcement, and which version is known to come.

    The draws that let a held-back chunk in are asked for right after a version is published, and
    overtake its announcement, for parameters are encoded beside the training. An actor that got its
    acknowledgement at once would play one chunk more with the version before: at a learner of a few
    updates per second that is seconds old.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.newest = ParamsOffer()
        self._changed = threading.Condition(lock)
        self._coming_version = 0
        self._announced_s = 0.0

    def announce(self, version: int, target_version: int, latest: Any, target: Any) -> None:
        """Hand these on from now on (`ParamsOffer`); older ones than those known are ignored."""
        if version >= self.newest.version:
            self.newest = ParamsOffer(version, target_version, latest, target)
            self._announced_s = time.monotonic()
            self._changed.notify_all()

    def expect(self, version: int) -> None:
        """The learner has published that version."""
        self._coming_version = max(self._coming_version, version)

    def await_first(self, timeout_s: float) -> ParamsOffer:
        """The newest; without any version when none is announced in time. Lets go of the lock."""
        self._changed.wait_for(lambda: self.newest.version > 0, timeout_s)
        return self.newest

    def await_coming(self) -> None:
        """Let go of the lock until what is expected is here, if that is worth waiting for."""
        if time.monotonic() - self._announced_s > FRESH_S:
            self._changed.wait_for(lambda: self.newest.version >= self._coming_version, COMING_S)
