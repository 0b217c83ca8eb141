"""The placement group of learner and shards, and the wait until the cluster has room.

Called when roles are created. Learner and shards are placed together or not at all, so that no run
holds half of what it needs; actors stand outside and may come later.
"""

from __future__ import annotations

import time
from typing import Any

from qfleet.cluster.placing.needs import SMALLER, free_in_words, how_many_fit, table
from qfleet.cluster.placing.surroundings import Tell
from qfleet.cluster.plan import ClusterPlan
from qfleet.cluster.waits import SLICE_S, ask_checks
from qfleet.common.errors import ResourcesError

TELL_PERIOD_S = 5.0
LEAST_WAIT_S = 5.0
"""What is there, or was just given back, is found within this: `ray.wait_for_resources_s` 0 waits
no longer."""


class Placement:
    """One placement group, and whether it and the first actors have room."""

    def __init__(self, ray: Any, plan: ClusterPlan) -> None:
        """Ask for the places of the learner (bundle 0) and of each shard."""
        from ray.util.placement_group import placement_group

        self._ray, self._plan = ray, plan
        bundles = [dict(need.each) for need in plan.together for _ in range(need.count)]
        self.group = placement_group(bundles, strategy="PACK")
        self._is_placed = self.group.ready()

    def strategy(self, bundle: int) -> Any:
        """For the role that belongs into that bundle."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=bundle
        )

    def wait(self, tell: Tell, *, with_actors: bool) -> None:
        """Until everybody who is needed to begin has room; says every 5 s who waits for what.

        Args:
            tell: Given what a user should know meanwhile.
            with_actors: Whether actors need room, too; else they are there already.

        Raises:
            ResourcesError: a table of wanted and available, after `ray.wait_for_resources_s`.
        """
        limit_s = self._plan.wait_for_resources_s
        began_s, told_s = time.monotonic(), -TELL_PERIOD_S
        while (lack := self._lack(with_actors)) is not None:
            ask_checks(began_s)
            waited_s = time.monotonic() - began_s
            if waited_s >= max(limit_s, LEAST_WAIT_S):
                raise ResourcesError(
                    f"{lack}, and the cluster has had no room for {waited_s:.0f} s "
                    f"(ray.wait_for_resources_s = {limit_s:g}):\n{self.table()}\n{SMALLER}"
                )
            if waited_s - told_s >= TELL_PERIOD_S and limit_s > 0.0:
                told_s = waited_s
                tell(f"waiting for room ({waited_s:.0f} of {limit_s:g} s): {lack}")

    def _lack(self, with_actors: bool) -> str | None:
        """Who waits for what; None when nobody does. Takes a moment when somebody does."""
        placed, _ = self._ray.wait([self._is_placed], timeout=SLICE_S)
        free = self._ray.available_resources()
        if not placed:
            who = " and ".join(map(str, self._plan.together))
            return f"{who} want places together; free are {self._free(free)}"
        actors = self._plan.actors
        if with_actors and how_many_fit(actors.each, free) < actors.least:
            time.sleep(SLICE_S)
            return f"{actors.least} of {actors} want places; free are {self._free(free)}"
        return None

    def _free(self, free: dict[str, float]) -> str:
        wanted = [name for name, amount in self._plan.resources.items() if amount]
        return free_in_words(wanted, free)

    def table(self) -> str:
        """See `needs.table`."""
        return table(self._plan.needs, self._ray)

    def remove(self) -> None:
        """Give the places back."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)
