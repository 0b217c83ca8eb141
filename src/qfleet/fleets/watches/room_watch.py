"""Whether the cluster has room for actors that have not come, said in one line for all of them.

Called by the actor watch. A run goes on with the actors that have room, down to `actors.min_count`.
"""

from __future__ import annotations

from collections.abc import Callable

from qfleet.cluster.answers import START_TIMEOUT_S
from qfleet.cluster.roles import Roles
from qfleet.common.errors import ResourcesError

ASK_PERIOD_S = 1.0
TELL_PERIOD_S = 5.0


class RoomWatch:
    """Asks the cluster at most once a second, tells at most every five."""

    def __init__(self, roles: Roles, min_count: int) -> None:
        self._roles, self._min_count = roles, min_count
        # An actor that has a place and is slow to start looks like one without.
        self._limit_s = max(START_TIMEOUT_S, roles.plans.cluster.wait_for_resources_s)
        self._lack: str | None = None
        self._asked_at_s = self._told_at_s = -1e9
        self._told: tuple[int, str] | None = None
        self._too_few_since_s: float | None = None

    def lack(self, now_s: float) -> str | None:
        """What an actor wants and does not find; None when there is room."""
        if now_s - self._asked_at_s >= ASK_PERIOD_S:
            self._asked_at_s, self._lack = now_s, self._roles.lack_of_room()
        return self._lack

    def observe(
        self, waiting: int, with_room: int, tell: Callable[[str], None], now_s: float
    ) -> None:
        """Take in how many actors wait for room and how many have it.

        Raises:
            ResourcesError: a table, when fewer than `actors.min_count` have had room for longer
                than `ray.wait_for_resources_s` and than an actor may take to start.
        """
        news = (waiting, self._lack or "")
        if waiting and self._lack and news != self._told:
            if now_s - self._told_at_s >= TELL_PERIOD_S:
                self._told, self._told_at_s = news, now_s
                total = waiting + with_room
                tell(f"{waiting} of {total} actors wait for room: each {self._lack}")
        elif not waiting:
            self._told = None
        if with_room >= self._min_count:
            self._too_few_since_s = None
            return
        if self._too_few_since_s is None:
            self._too_few_since_s = now_s
        if now_s - self._too_few_since_s >= self._limit_s:
            raise ResourcesError(
                f"{with_room} actors have had room for {self._limit_s:g} s, actors.min_count is "
                f"{self._min_count}:\n"
                f"{self._roles.table_of_needs()}"
            )
