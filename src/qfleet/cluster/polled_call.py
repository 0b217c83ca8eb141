"""A question that the driver asks a role again and again without ever waiting for the answer.

Called by the asynchronous loop once per tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qfleet.cluster.answers import START_TIMEOUT_S, answer, ask_by, new_patience
from qfleet.cluster.ray_cluster import import_ray
from qfleet.common.errors import CallLostError, WaitTimeoutError

POLL_S = 0.25
SILENCE_TIMEOUT_S = 45.0
HESITATION_S = 5.0
"""A role that has not answered for longer may be hanging: nothing is begun that needs it."""


class PolledCall:
    """One question to one role at a time, asked again each period; silence is an error."""

    def __init__(
        self,
        ask: Callable[[], Any],
        who: str,
        period_s: float = POLL_S,
        *,
        has_answered: bool = True,
    ) -> None:
        """`has_answered`: the role has answered before; else it is first given time to start."""
        self._ask, self._who, self._period_s = ask, who, period_s
        self._refs: list[Any] = []
        """Calls that may still bring the answer, oldest first."""
        self._patience = new_patience()
        self._patience_s = self._patience.seconds
        self._first_asked_at_s = self._asked_at_s = -1e9
        self._heard_at_s: float | None = None
        self.has_answered = has_answered

    def poll(self, now_s: float) -> Any:
        """The newest answer, or None while there is none.

        Raises:
            WaitTimeoutError: after `SILENCE_TIMEOUT_S`, or `START_TIMEOUT_S` for the first answer.
            RoleLostError: when the role is dead.
        """
        if self._heard_at_s is None:
            self._heard_at_s = now_s
        if not self._refs:
            if now_s - self._asked_at_s >= self._period_s:
                self._patience_s, self._first_asked_at_s = self._patience.seconds, now_s
                self._call(now_s)
            return None
        ready, _ = import_ray().wait(self._refs, num_returns=len(self._refs), timeout=0)
        for ref in ready:
            self._refs.remove(ref)
            try:
                result = answer(ref, "driver", self._who)
            except CallLostError:
                continue  # asked again
            self._refs = []
            self._patience.answered(now_s - self._first_asked_at_s)
            self._heard_at_s, self.has_answered = now_s, True
            return result
        if ready and not self._refs:
            return None
        if now_s - self._asked_at_s >= self._patience_s:
            self._patience_s *= 2.0
            self._call(now_s)
        limit_s = SILENCE_TIMEOUT_S if self.has_answered else START_TIMEOUT_S
        if self.silent_s(now_s) > limit_s:
            raise WaitTimeoutError(f"driver heard nothing from {self._who} for {limit_s:.0f} s")
        return None

    def _call(self, now_s: float) -> None:
        self._refs.append(self._ask())
        self._asked_at_s = now_s

    def silent_s(self, now_s: float) -> float:
        """How long nothing has been heard."""
        return 0.0 if self._heard_at_s is None else now_s - self._heard_at_s

    def hesitates(self, now_s: float) -> bool:
        """Whether an answer is overdue."""
        return self.silent_s(now_s) > HESITATION_S

    def excuse(self, now_s: float) -> None:
        """There is a reason for the silence: begin to count anew."""
        self._heard_at_s = now_s

    def last_answer(self, ends_s: float) -> Any:
        """At the end: a fresh answer; one still under way tells nothing that it does not."""
        self._refs = []
        return ask_by(self._ask, "driver", self._who, ends_s)
