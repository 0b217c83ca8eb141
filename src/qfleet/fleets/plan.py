"""What the driver's loops are told, and the plans of a whole run; made by `settings/plans.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from qfleet.actors.plan import ActorPlan, EvaluatorPlan
from qfleet.cluster.plan import ClusterPlan
from qfleet.learner.plan import LearnerPlan
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import LearningRule


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
    checkpoints_hold_replay: bool
    rounds: RoundPlan


class RunPlans(NamedTuple):
    """Everything that the roles of one run are made of, every `auto` a number."""

    actor: ActorPlan
    evaluator: EvaluatorPlan
    replay: ReplayPlan
    learner: LearnerPlan
    fleet: FleetPlan
    cluster: ClusterPlan
