"""Creates the Ray actors of all roles from one configuration; the driver owns every one of them.

Called by the composition root and, for replacements, by the asynchronous loop. Learner and replay
sit in a placement group; actors outside it, so that they can come and go.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from qfleet.cluster.plan import RunPlans
from qfleet.cluster.ray_cluster import SMALLER, import_ray, resource_table
from qfleet.cluster.waits import Wait, ask_checks
from qfleet.common.errors import (
    CallLostError,
    ClusterLostError,
    QfleetError,
    ResourcesError,
    RoleLostError,
    WaitTimeoutError,
)
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.common.user_code import paths_for_roles

START_TIMEOUT_S = 180.0
_LONGEST_REASON = 500
"""Characters: an error may quote a whole message."""
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ANSWER_TIMEOUT_S = 45.0
"""A role that keeps the driver waiting for longer than this is taken for dead."""
MAX_CALLS = 10
"""Of one question, the lost ones included."""
Waiting = Callable[[], AbstractContextManager[None]]
"""Around the wait for roles that start: a signal may end it, but must not cut into a creation."""


def answer(
    ref: Any,
    waiter: str,
    awaited: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    watch: Callable[[], None] | None = None,
) -> Any:
    """`ray.get` that says who waited for whom, and raises our own errors as themselves.

    Args:
        ref: What Ray gave for the call.
        waiter: Who waits, in words.
        awaited: For whom or what.
        timeout_s: For how long at most.
        watch: Called while nothing comes; raises when the role gets nowhere.

    Raises:
        WaitTimeoutError: after `timeout_s`.
        CallLostError: when Ray lost the call, which may be made again.
        RoleLostError: when the awaited role is dead.
        QfleetError: what the role itself raised, or one of the checks (`cluster/waits.py`).
        SystemExit: a signal came, and the role does not answer.
    """
    ray = import_ray()
    wait = Wait(timeout_s)
    try:
        while True:
            try:
                return ray.get(ref, timeout=wait.slice_s)
            except ray.exceptions.GetTimeoutError as error:
                if not wait.goes_on():
                    text = f"{waiter} waited {timeout_s:.0f} s for {awaited}"
                    raise WaitTimeoutError(text) from error
                if watch is not None:
                    watch()
    except ray.exceptions.ActorUnavailableError as error:
        raise CallLostError(f"a call to {awaited} was lost: {first_line(error)}") from error
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
        raise RoleLostError(f"{awaited} died: {first_line(error)}") from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, QfleetError):
            raise cause from error
        raise


def ask(
    call: Callable[[], Any],
    waiter: str,
    awaited: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    *,
    first: Any = None,
) -> Any:
    """`answer` to a call that may be made twice: one that is lost on its way is made again.

    Args:
        call: Makes it.
        waiter: Who waits, in words.
        awaited: For whom or what.
        timeout_s: For how long at most for each answer.
        first: The reference of the first call, where it was made before.

    Raises:
        WaitTimeoutError, RoleLostError, QfleetError: see `answer`.
    """
    ref = call() if first is None else first
    for _ in range(MAX_CALLS - 1):
        try:
            return answer(ref, waiter, awaited, timeout_s)
        except CallLostError:
            ref = call()
    return answer(ref, waiter, awaited, timeout_s)


def first_line(error: BaseException) -> str:
    """The most telling line of a Ray error: its last one when it carries a traceback."""
    text = _ANSI_COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A role whose constructor raised comes with its stack, but without that heading.
    has_stack = any(
        "Traceback" in line or "creation task" in line or line.startswith("File ") for line in lines
    )
    return (lines[-1] if has_stack else lines[0])[:_LONGEST_REASON]


class Roles:
    """Handles of every Ray actor of a run."""

    def __init__(self, plans: RunPlans, spec: EnvironmentSpec, *, run_id: str, device: str) -> None:
        from qfleet.actors.remote import remote_actor_class, remote_evaluator_class
        from qfleet.learner.remote import remote_learner_class
        from qfleet.replay_server.remote import remote_replay_class

        self.plans, self.run_id = plans, run_id
        self._spec_json = spec.to_json()
        self._import_paths = paths_for_roles()
        self._actor_class = remote_actor_class()
        self._evaluator_class = remote_evaluator_class()
        self._evaluators = 0
        self.learner: Any = None
        self.shards: list[Any] = []
        self.actors: dict[int, Any] = {}
        self.evaluator: Any = None
        self._group = self._reserve()
        with self.ended_on_error():
            self._create_learner(remote_learner_class(), device)  # it takes longest to be ready
            replay_class = remote_replay_class()
            for shard in range(plans.fleet.shards):
                self._create_shard(replay_class, shard)
            self.create_evaluator()

    def _create_learner(self, learner_class: Any, device: str) -> None:
        learner = self.plans.learner
        self.learner = self._create(
            learner_class,
            "learner",
            self._in_group(0),
            plan_to_json(learner),
            self._spec_json,
            self._import_paths,
            device,
            num_cpus=learner.num_cpus,
            num_gpus=learner.num_gpus,
        )

    def _create_shard(self, replay_class: Any, shard: int) -> None:
        self.shards.append(
            self._create(
                replay_class,
                f"replay-{shard}",
                self._in_group(1 + shard),
                plan_to_json(self.plans.replay),
                self._spec_json,
                self.run_id,
                shard,
                num_cpus=self.plans.replay.num_cpus,
            )
        )

    def create_evaluator(self) -> None:
        """The evaluator, or a new one in place of one that is lost."""
        if self.evaluator is not None:
            import_ray().kill(self.evaluator, no_restart=True)
        self._evaluators += 1
        self.evaluator = self._create(
            self._evaluator_class,
            f"evaluator-{self._evaluators}",
            None,
            plan_to_json(self.plans.evaluator),
            self._spec_json,
            self._import_paths,
            num_cpus=self.plans.evaluator.num_cpus,
        )

    def _reserve(self) -> Any:
        from ray.util.placement_group import placement_group

        learner = self.plans.learner
        bundles: list[dict[str, float]] = [{"CPU": float(learner.num_cpus)}]
        if learner.num_gpus:
            bundles[0]["GPU"] = float(learner.num_gpus)
        bundles += [{"CPU": self.plans.replay.num_cpus}] * self.plans.fleet.shards
        return placement_group(bundles, strategy="PACK")

    def _in_group(self, bundle: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=bundle
        )

    def _create(
        self, actor_class: Any, name: str, strategy: Any, *arguments: Any, **options: Any
    ) -> Any:
        if strategy is not None:
            options["scheduling_strategy"] = strategy
        return actor_class.options(name=f"{self.run_id}/{name}", **options).remote(*arguments)

    def create_actor(self, slot: int, incarnation: int) -> Any:
        """Fill `slot` with a new process; the handle is kept in `actors`."""
        self.actors[slot] = self._create(
            self._actor_class,
            f"actor-{slot}-{incarnation}",
            None,
            plan_to_json(self.plans.actor),
            self._spec_json,
            self._import_paths,
            self.run_id,
            slot,
            incarnation,
            num_cpus=self.plans.actor.num_cpus,
        )
        return self.actors[slot]

    def shard_of(self, slot: int) -> Any:
        """The shard that an actor slot writes to."""
        return self.shards[slot % len(self.shards)]

    def lack_of_cpus(self, num_cpus: float) -> str | None:
        """Why a role with so many CPUs has no place in the cluster now; None when it has one."""
        free = import_ray().available_resources().get("CPU", 0.0)
        return None if free >= num_cpus else f"wanted {num_cpus:g}, free {free:g}"

    def wait_until_ready(self) -> dict[str, int]:
        """Process ids of learner and shards once they can answer.

        Raises:
            ResourcesError: when nothing could be placed in time.
        """
        pids = {}
        try:
            for index, shard in enumerate(self.shards):
                who = f"replay-{index} to start"
                pids[f"replay-{index}"] = ask(shard.ready.remote, "driver", who, START_TIMEOUT_S)
            pids["learner"] = ask(
                self.learner.ready.remote, "driver", "the learner to start", START_TIMEOUT_S
            )
        except WaitTimeoutError as error:
            table = resource_table(self.plans.cluster)
            raise ResourcesError(
                f"{error}: the cluster did not place it\n{table}\n{SMALLER}"
            ) from error
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
        with suppress(ClusterLostError):
            ask_checks(time.monotonic())
            self._kill_all()

    def _kill_all(self) -> None:
        ray = import_ray()
        from ray.util.placement_group import remove_placement_group

        for handle in [*self.actors.values(), self.evaluator, self.learner, *self.shards]:
            if handle is not None:  # an error came before it was created
                ray.kill(handle, no_restart=True)
        remove_placement_group(self._group)
