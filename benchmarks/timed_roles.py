"""The shells of learner and actor with a clock beside them, for latencies between processes.

Used by `snapshot_latency.py` and `checkpoint_cost.py`. The roles do exactly what they do in a run;
each only notes when something happened, by the system's monotonic clock, which all processes of one
Linux host share.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from producers import RUN_ID, START_TIMEOUT_S, start_shards

from qfleet.actors import remote as actor_shell
from qfleet.actors.remote import ActorShell
from qfleet.cluster.answers import answer, new_patience
from qfleet.common.patience import Patience
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.learner import remote as learner_shell
from qfleet.learner.remote import LearnerShell
from qfleet.settings.config import Config
from qfleet.settings.plans import run_plans


class TimedLearnerShell(LearnerShell):
    """Notes (learner step, time) at the end of every block."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._blocks: list[tuple[int, float]] = []
        core, update = self._core, self._core.update_block

        def timed(sample: Any) -> Any:
            errors = update(sample)
            self._blocks.append((core.learner_steps, time.monotonic()))
            return errors

        core.update_block = timed

    @ray.method(concurrency_group="control")
    def blocks(self) -> list[tuple[int, float]]:
        """All notes so far."""
        return list(self._blocks)

    @ray.method(concurrency_group="control")
    def allow_run(self) -> None:
        """Let `run` be called again after a stop."""
        self._stop.clear()
        self._has_begun = False


class TimedActorShell(ActorShell):
    """Notes (learner step of its parameters, time) after the first step with each version."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._first_actions: list[tuple[int, float]] = []
        core, step = self._core, self._core.step
        last_version = None

        def timed() -> None:
            nonlocal last_version
            step()
            if core.params_version != last_version:
                last_version = core.params_version
                self._first_actions.append((core.params_learner_step, time.monotonic()))

        core.step = timed

    @ray.method(concurrency_group="control")
    def first_actions(self) -> list[tuple[int, float]]:
        """All notes so far."""
        return list(self._first_actions)


@dataclass
class TimedRoles:
    """Handles of the roles that were started, under the names that `Roles` has."""

    learner: Any
    shards: list[Any]
    actors: dict[int, Any]
    capture_patience: Patience = field(default_factory=new_patience)

    def end(self) -> None:
        """End every role."""
        for handle in [*self.actors.values(), self.learner, *self.shards]:
            ray.kill(handle, no_restart=True)


def start_roles(config: Config, spec: EnvironmentSpec, n_actors: int) -> TimedRoles:
    """Shards, a timed learner and timed actors, connected and ready to `run`."""
    plans = run_plans(config)
    learner_class = ray.remote(**learner_shell.RAY_OPTIONS)(TimedLearnerShell)
    learner = learner_class.options(num_cpus=plans.learner.num_cpus).remote(
        plan_to_json(plans.learner), spec.to_json(), [], "cpu"
    )
    actor_class = ray.remote(**actor_shell.RAY_OPTIONS)(TimedActorShell)
    actor_class = actor_class.options(num_cpus=plans.actor.num_cpus)
    texts = (plan_to_json(plans.actor), spec.to_json(), [], RUN_ID)
    actors = {
        slot: actor_class.remote(*texts, slot, 0, [slot, n_actors]) for slot in range(n_actors)
    }
    shards = start_shards(config, spec, config.replay.shards)
    answer(learner.ready.remote(), "benchmark", "the learner to start", START_TIMEOUT_S)
    for actor in actors.values():
        answer(actor.ping.remote(), "benchmark", "an actor to start", START_TIMEOUT_S)
    answer(learner.set_shards.remote(shards), "benchmark", "the learner")
    return TimedRoles(learner, shards, actors)
