"""What the driver is told, and all plans of a run together; made by `settings/plans.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qfleet.actors.plan import ActorPlan, EvaluatorPlan
from qfleet.cluster.placing.needs import RoleNeed, total
from qfleet.learner.plan import LearnerPlan
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import LearningRule


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Which cluster to use, and what all roles together ask of it."""

    learner: RoleNeed
    shards: RoleNeed
    actors: RoleNeed
    address: str | None
    """`ray.address`; None: RAY_ADDRESS or a cluster of our own."""
    wait_for_resources_s: float
    ship: tuple[str, ...]
    is_lean: bool
    """Whether a cluster of our own is started with what carries actors and objects alone."""

    @property
    def together(self) -> tuple[RoleNeed, ...]:
        """Those that are placed together or not at all."""
        return self.learner, self.shards

    @property
    def needs(self) -> tuple[RoleNeed, ...]:
        """Of everybody; the evaluator asks for nothing."""
        return *self.together, self.actors

    @property
    def resources(self) -> dict[str, float]:
        """Ray's names and what all roles together ask of each."""
        return total(self.needs)


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """Fixed sizes of a lockstep run's rounds."""

    n_env_steps: int | None
    """Env steps per slot and round; None: one episode."""
    updates_per_block: int
    learning: LearningRule
    """How many blocks a round learns."""


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What the driver decides about the roles."""

    actors: int
    min_actors: int
    """Fewer living actors than this end the run."""
    shards: int
    max_role_restarts: int
    """So often in vain before the loss of a role ends the run."""
    checkpoints_hold_replay: bool
    step_timeout_s: float
    """A role whose environments are in one step or reset for longer hangs."""
    rounds: RoundPlan


class RunPlans(NamedTuple):
    """Everything that the roles of one run are made of, every `auto` a number."""

    actor: ActorPlan
    evaluator: EvaluatorPlan
    replay: ReplayPlan
    learner: LearnerPlan
    fleet: FleetPlan
    cluster: ClusterPlan
