"""Whether a role gets anywhere: its counter must move, and it must answer.

Used by both loops over Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qfleet.cluster.polled_call import PolledCall
from qfleet.common.errors import WaitTimeoutError

PERIOD_S = 1.0


@dataclass
class StandStill:
    """How long a role's counter has not moved although the role says that it is at work.

    A role that hangs still answers: another thread of it does.
    """

    _value: int = -1
    _since_s: float = 0.0

    def observe(self, value: int, is_working: bool, now_s: float) -> float:
        """Take in the counter; returns the seconds."""
        if value != self._value or not is_working:
            self._value, self._since_s = value, now_s
        return now_s - self._since_s


class ProgressWatch:
    """Of one role; called by `answer` while nothing comes."""

    def __init__(
        self,
        ask: Callable[[], Any],
        who: str,
        counter: Callable[[Any], int] = lambda answer: 0,
        timeout_s: float = float("inf"),
        remedy: str = "",
    ) -> None:
        """Watch the role that `ask` asks; `counter` of its answer must move every `timeout_s`."""
        self._call = PolledCall(ask, who, PERIOD_S)
        self._who, self._counter, self._timeout_s, self._remedy = who, counter, timeout_s, remedy
        self._still = StandStill()

    def __call__(self) -> None:
        """Ask if it is time.

        Raises:
            WaitTimeoutError: when the role is silent or stands still.
            RoleLostError: when it is dead.
        """
        now_s = time.monotonic()
        result = self._call.poll(now_s)
        if result is None:
            return
        still_s = self._still.observe(self._counter(result), True, now_s)
        if still_s > self._timeout_s:
            raise WaitTimeoutError(
                f"{self._who} answers, but has got nowhere for {still_s:.0f} s{self._remedy}"
            )
