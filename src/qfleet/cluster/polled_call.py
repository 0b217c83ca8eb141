"""A question that the driver asks a role again and again without ever waiting for the answer.

Called by the asynchronous loop once per tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import answer, ask
from qfleet.common.errors import CallLostError, WaitTimeoutError

POLL_S = 0.25
SILENCE_TIMEOUT_S = 60.0


class PolledCall:
    """One question to one role at a time, asked again each period; silence is an error."""

    def __init__(self, ask: Callable[[], Any], who: str, period_s: float = POLL_S) -> None:
        self._ask, self._who, self._period_s = ask, who, period_s
        self._ref: Any = None
        self._asked_at_s = -1e9
        self._heard_at_s: float | None = None

    def poll(self, now_s: float) -> Any:
        """The newest answer, or None while there is none.

        Raises:
            WaitTimeoutError: after a minute of silence.
            RoleLostError: when the role is dead.
        """
        if self._heard_at_s is None:
            self._heard_at_s = now_s
        if self._ref is None:
            if now_s - self._asked_at_s >= self._period_s:
                self._ref, self._asked_at_s = self._ask(), now_s
            return None
        ready, _ = import_ray().wait([self._ref], timeout=0)
        if ready:
            ref, self._ref = self._ref, None
            try:
                result = answer(ref, "driver", self._who)
            except CallLostError:
                return None  # asked again
            self._heard_at_s = now_s
            return result
        if now_s - self._heard_at_s > SILENCE_TIMEOUT_S:
            raise WaitTimeoutError(f"driver heard nothing from {self._who} for a minute")
        return None

    def last_answer(self, timeout_s: float) -> Any:
        """At the end: a fresh answer; one still under way tells nothing that it does not."""
        self._ref = None
        return ask(self._ask, "driver", self._who, timeout_s)
