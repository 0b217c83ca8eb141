"""What limits a run now, from the roles' measured busy and waiting times.

Pure; called by the session with every report. The verdict is taken over a sliding window, so that
start-up does not colour it for ever.
"""

from __future__ import annotations

import collections

from qfleet.fleet import FleetReport

WINDOW_S = 10.0
WAITING_SHARE = 0.3
"""A role that waits for less than this share of its time sets the pace."""
UNKNOWN = "unknown"


class Bottleneck:
    """The verdict over the last `WINDOW_S` seconds of reports."""

    def __init__(self) -> None:
        self._window: collections.deque[tuple[float, float, float, float, float]] = (
            collections.deque()
        )

    def observe(self, report: FleetReport, now_s: float) -> None:
        """Take in cumulative times; `now_s` is the run's own elapsed time."""
        busy = sum(actor.busy_s for actor in report.actors)
        blocked = sum(actor.blocked_s for actor in report.actors)
        self._window.append((now_s, report.update_s, report.wait_s, busy, blocked))
        while self._window[-1][0] - self._window[0][0] > WINDOW_S:
            self._window.popleft()

    @property
    def verdict(self) -> str:
        """`learner`, `actors`, `replay` (both wait), or `unknown` before anything was measured.

        In one process nobody waits; there the role that takes most of the time is named.
        """
        if len(self._window) < 2:
            return UNKNOWN
        first, last = self._window[0], self._window[-1]
        update, wait, busy, blocked = (
            max(0.0, b - a) for a, b in zip(first[1:], last[1:], strict=True)
        )
        if update + busy == 0.0:
            return UNKNOWN
        if wait + blocked == 0.0:
            return "learner" if update >= busy else "actors"
        if wait <= WAITING_SHARE * (update + wait):
            return "learner"
        if blocked <= WAITING_SHARE * (busy + blocked):
            return "actors"
        return "replay"
