"""Creates the Ray actors of all roles from one configuration; the driver owns every one of them.

Called by the composition root and, for replacements, by the asynchronous loop. Learner and replay
sit in a placement group; actors outside it, so that they can come and go.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from qfleet.cluster.answers import START_TIMEOUT_S, ask, new_patience
from qfleet.cluster.placing.needs import SMALLER, Amounts, free_in_words, how_many_fit, in_words
from qfleet.cluster.placing.placement import Placement
from qfleet.cluster.placing.role_places import RolePlaces
from qfleet.cluster.placing.surroundings import NOTHING_AROUND, Surroundings, Tell
from qfleet.cluster.plan import RunPlans
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.telling.role_logs import RoleLogs
from qfleet.cluster.waits import ask_checks
from qfleet.common.errors import ClusterLostError
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.common.user_code import paths_for_roles


class Roles:
    """Handles of every Ray actor of a run."""

    def __init__(
        self,
        plans: RunPlans,
        spec: EnvironmentSpec,
        *,
        run_id: str,
        device: str,
        surroundings: Surroundings = NOTHING_AROUND,
    ) -> None:
        from qfleet.actors.remote import remote_actor_class
        from qfleet.actors.remote_evaluator import remote_evaluator_class
        from qfleet.learner.remote import remote_learner_class
        from qfleet.replay_server.remote import remote_replay_class

        self.plans, self.run_id = plans, run_id
        self.surroundings, self._run_name = surroundings, surroundings.name or run_id
        self.places = RolePlaces()
        self.logs = RoleLogs(surroundings.logs, socket.gethostname())
        self._spec_json = spec.to_json()
        self._import_paths = paths_for_roles()
        self._actor_class = remote_actor_class()
        self._evaluator_class = remote_evaluator_class()
        self._replay_class = remote_replay_class()
        self._evaluators = self._later_shards = 0
        self.learner: Any = None
        self.capture_patience = new_patience()
        """For the learner's state, which comes after the block of updates that it is in."""
        self.shards: list[Any] = []
        self.shard_names: list[str] = []
        self.actors: dict[int, Any] = {}
        self.evaluator: Any = None
        self._placement = Placement(import_ray(), plans.cluster)
        with self.ended_on_error():
            self._create_learner(remote_learner_class(), device)  # it takes longest to be ready
            for shard in range(plans.fleet.shards):
                self.shard_names.append(f"replay-{shard}")
                self.shards.append(self._new_shard(shard))
            self.create_evaluator()

    def _create_learner(self, learner_class: Any, device: str) -> None:
        learner = self.plans.learner
        self.learner = self._create(
            learner_class,
            "learner",
            self._placement.strategy(0),
            plan_to_json(learner),
            self._spec_json,
            self._import_paths,
            device,
            **_ray_options(self.plans.cluster.learner.each),
        )

    def _new_shard(self, shard: int) -> Any:
        return self._create(
            self._replay_class,
            self.shard_names[shard],
            self._placement.strategy(1 + shard),
            plan_to_json(self.plans.replay),
            self._spec_json,
            self.run_id,
            shard,
            **_ray_options(self.plans.cluster.shards.each),
        )

    def create_shard(self, shard: int) -> Any:
        """A new, empty process in place of a shard that is lost."""
        self._later_shards += 1
        self.gone(self.shard_names[shard])
        self.shard_names[shard] = f"replay-{shard}-{self._later_shards}"
        self.shards[shard] = self._new_shard(shard)
        return self.shards[shard]

    def create_evaluator(self) -> None:
        """The evaluator, or a new one in place of one that is lost."""
        if self.evaluator is not None:
            import_ray().kill(self.evaluator, no_restart=True)
            self.gone(self.evaluator_name)
        self._evaluators += 1
        self.evaluator = self._create(
            self._evaluator_class,
            self.evaluator_name,
            None,
            plan_to_json(self.plans.evaluator),
            self._spec_json,
            self._import_paths,
            num_cpus=self.plans.evaluator.num_cpus,
        )

    @property
    def evaluator_name(self) -> str:
        """Of the newest one."""
        return f"evaluator-{self._evaluators}"

    def tells_place(self, role: str, handle: Any, told: Mapping[str, Any]) -> None:
        """A role has said where it runs."""
        self.logs.follow(role, handle, self.places.take(role, told))

    def hosts(self) -> dict[str, tuple[str, int]]:
        """Host and process of each role that has told, by its name without a number that counts."""
        found = {}
        for role, place in self.places.all().items():
            kind, *numbers = role.split("-")
            has_number = kind in ("actor", "replay")
            found[f"{kind}-{numbers[0]}" if has_number else kind] = place.host, place.pid
        return found

    def gone(self, role: str) -> None:
        """A role's process has ended, or is as good as dead."""
        self.logs.end(role)
        self.places.forget(role)

    def _create(
        self, actor_class: Any, name: str, strategy: Any, *arguments: Any, **options: Any
    ) -> Any:
        if strategy is not None:
            options["scheduling_strategy"] = strategy
        return actor_class.options(name=f"{self._run_name}/{name}", **options).remote(*arguments)

    def create_actor(
        self, slot: int, incarnation: int, ladder: tuple[int, int] | None = None
    ) -> Any:
        """Fill `slot` with a new process; the handle is kept in `actors`.

        `ladder`: its place in the ε ladder of so many actors; None: its slot's among all planned.
        """
        planned = self.plans.actor.count
        # In a Ray of our own nobody else asks for CPUs, and there are those that the plan names.
        is_extra = self.surroundings.is_own_ray and slot >= planned
        self.actors[slot] = self._create(
            self._actor_class,
            actor_name(slot, incarnation),
            None,
            plan_to_json(self.plans.actor),
            self._spec_json,
            self._import_paths,
            self.run_id,
            slot,
            incarnation,
            list(ladder or (slot, planned)),
            **_ray_options({} if is_extra else self.plans.cluster.actors.each),
        )
        return self.actors[slot]

    def shard_of(self, slot: int) -> Any:
        """The shard that an actor slot writes to."""
        return self.shards[slot % len(self.shards)]

    def lack_of_room(self) -> str | None:
        """Why a new actor has no place in the cluster now; None when it has one.

        In a Ray of our own it has: nobody else asks for anything.
        """
        if self.surroundings.is_own_ray:
            return None
        each, free = self.plans.cluster.actors.each, import_ray().available_resources()
        if how_many_fit(each, free) >= 1:
            return None
        return f"wanted {in_words(each)}, free {free_in_words(each, free)}"

    def wait_for_room(self, tell: Tell) -> None:
        """Until learner, shards and the first actors have a place.

        Raises:
            ResourcesError: a table of wanted and available, after `ray.wait_for_resources_s`.
        """
        self._placement.wait(tell, with_actors=not self.actors)

    def table_of_needs(self) -> str:
        """Wanted and available, and what can be done."""
        return f"{self._placement.table()}\n{SMALLER}"

    def wait_until_ready(self) -> dict[str, int]:
        """Process ids of learner and shards once they can answer; they have places.

        Raises:
            ResourcesError: a table, when they run with other versions than the driver's.
        """
        roles = dict(zip(["learner", *self.shard_names], [self.learner, *self.shards], strict=True))
        pids = {
            role: int(ask(handle.ready.remote, "driver", f"{role} to start", START_TIMEOUT_S))
            for role, handle in reversed(roles.items())
        }
        asked = {role: handle.place.remote() for role, handle in roles.items()}
        for role, handle in roles.items():
            told = ask(handle.place.remote, "driver", role, first=asked[role])
            self.tells_place(role, handle, told)
        self.places.check_versions()
        return pids

    @contextmanager
    def ended_on_error(self) -> Iterator[None]:
        """An error inside ends every role: what could not be built must leave nothing running."""
        try:
            yield
        except BaseException:
            self.kill_all()
            raise

    def kill_all(self) -> None:
        """End every role of this run at once; in a cluster that is gone nobody is left to end."""
        self.logs.close()
        with suppress(ClusterLostError):
            ask_checks(time.monotonic())
            self._kill_all()

    def _kill_all(self) -> None:
        ray = import_ray()
        for handle in [*self.actors.values(), self.evaluator, self.learner, *self.shards]:
            if handle is not None:  # an error came before it was created
                ray.kill(handle, no_restart=True)
        self._placement.remove()


def _ray_options(each: Amounts) -> dict[str, Any]:
    """Ray's options for what a role asks for; none of a thing is said, for its default is one."""
    custom = {name: amount for name, amount in each.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {"num_cpus": each.get("CPU", 0.0), "num_gpus": each.get("GPU", 0.0)}
    return options | ({"resources": custom} if custom else {})


def actor_name(slot: int, incarnation: int) -> str:
    """Of the process that fills a slot."""
    return f"actor-{slot}-{incarnation}"
