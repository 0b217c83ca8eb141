"""A question that the driver asks a role again and again without ever waiting for the answer.

Called by the asynchronous loop once per tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import answer
from qfleet.common.errors import WaitTimeoutError

POLL_S = 0.25
SILENCE_TIMEOUT_S = 60.0


class PolledCall:
    """One question to one role at a time, asked again each period; silence is an error."""

    def __init__(self, ask: Callable[[], Any], who: str, period_s: float = POLL_S) -> None:
        self._ask, self._who, self._period_s = ask, who, period_s
        self._ref: Any = None
        self._asked_at_s = -1e9

    def poll(self, now_s: float) -> Any:
        """The newest answer, or None while there is none.

        Raises:
            WaitTimeoutError: after a minute of silence.
            RoleLostError: when the role is dead.
        """
        if self._ref is None:
            if now_s - self._asked_at_s >= self._period_s:
                self._ref, self._asked_at_s = self._ask(), now_s
            return None
        ready, _ = import_ray().wait([self._ref], timeout=0)
        if ready:
            ref, self._ref = self._ref, None
            return answer(ref, "driver", self._who)
        if now_s - self._asked_at_s > SILENCE_TIMEOUT_S:
            raise WaitTimeoutError(f"driver heard nothing from {self._who} for a minute")
        return None

    def last_answers(self, timeout_s: float) -> list[Any]:
        """At the end: the answer still under way, which nobody else gets, and a fresh one."""
        refs = [self._ref, self._ask()] if self._ref is not None else [self._ask()]
        self._ref = None
        return [import_ray().get(ref, timeout=timeout_s) for ref in refs]
