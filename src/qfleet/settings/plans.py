"""From the resolved configuration to what each role is told: the only way between the two.

Called by the composition root, before anything is started. Plans take numbers only: a configuration
that still holds an `auto` where a number belongs is refused here.
"""

from __future__ import annotations

import math

from pydantic import ValidationError

from qfleet.actors.plan import ActorPlan, EvaluatorPlan
from qfleet.cluster.placing.needs import RoleNeed
from qfleet.cluster.plan import ClusterPlan, FleetPlan, RoundPlan, RunPlans
from qfleet.common.errors import ConfigError
from qfleet.learner.plan import LearnerPlan
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.rate_limiter import EpisodeLimiter, LearningRule
from qfleet.replay_server.row_bytes import frame_places
from qfleet.settings.config import Config
from qfleet.settings.config_auto import EVALUATOR_CPUS, SHARD_CPUS


def run_plans(config: Config) -> RunPlans:
    """The plans of a run.

    Raises:
        ConfigError: when an `auto` is left that `resolve_config` would have replaced.
    """
    if config.effective_schedule == "lockstep" and config.learner.compile == "auto":
        raise ConfigError("plans of a lockstep run need to know: learner.compile is unresolved")
    try:
        actor, evaluator = _actor_plan(config), _evaluator_plan(config)
        learner = _learner_plan(config)
        replay = _replay_plan(config, actor, learner)
        return RunPlans(
            actor,
            evaluator,
            replay,
            learner,
            _fleet_plan(config, actor, learner),
            _cluster_plan(config, actor, replay, learner),
        )
    except ValidationError as error:
        fields = ", ".join(str(one["loc"][0]) for one in error.errors())
        raise ConfigError(
            f"plans need numbers, but the configuration is unresolved in {fields}"
        ) from error


def _actor_plan(config: Config) -> ActorPlan:
    actors, learner = config.actors, config.learner
    return ActorPlan(
        seed=config.seed,
        env=config.env,
        network=config.network,
        gives_priorities=config.replay.sampling != "uniform",
        double_q=learner.double_q,
        munchausen=learner.munchausen,
        has_target_syncs=learner.target_network and learner.target_tau is None,
        **config.eval.model_dump(include={"max_episode_steps"}),
        **actors.model_dump(exclude={"min_count"}),
    )


def _evaluator_plan(config: Config) -> EvaluatorPlan:
    return EvaluatorPlan(
        env=config.env,
        network=config.network,
        **config.eval.model_dump(include={"epsilon", "max_episode_steps"}),
        num_cpus=EVALUATOR_CPUS,
    )


def _learner_plan(config: Config) -> LearnerPlan:
    replay, run = config.replay, config.run
    return LearnerPlan(
        seed=config.seed,
        network=config.network,
        eval_period_learner_steps=config.eval.period_learner_steps,
        is_prioritized=replay.sampling != "uniform",
        frame_bytes=_frame_bytes(config),
        max_learner_steps=run.max_learner_steps,
        max_env_steps=run.max_env_steps,
        max_wall_s=run.max_wall_s,
        **replay.model_dump(
            include={
                "importance_sampling_exponent",
                "importance_sampling_end_learner_steps",
                "samples_per_insert",
            }
        ),
        **config.learner.model_dump(exclude={"device", "updates_per_episode"}),
    )


def _frame_bytes(config: Config) -> int:
    env, replay = config.env, config.replay
    if env.observation != "pixels":
        return 0
    places = frame_places(replay.capacity // replay.shards)
    return replay.shards * places * math.prod(env.frame_shape)


def _replay_plan(config: Config, actor: ActorPlan, learner: LearnerPlan) -> ReplayPlan:
    replay = config.replay
    shared = {
        "sampling",
        "compression",
        "priority_exponent",
        "priority_epsilon",
        "samples_per_insert",
    }
    return ReplayPlan(
        seed=config.seed,
        num_cpus=SHARD_CPUS,
        capacity=replay.capacity // replay.shards,
        min_size_to_sample=-(-replay.min_size_to_sample // replay.shards),
        **replay.model_dump(include={*shared, "limiter_tolerance_samples"}),
        largest_chunk_transitions=actor.max_chunk_transitions,
        largest_request_samples=(
            learner.updates_per_call * learner.max_blocks_per_request * learner.batch_size
        ),
    )


def _fleet_plan(config: Config, actor: ActorPlan, learner: LearnerPlan) -> FleetPlan:
    return FleetPlan(
        actors=actor.count,
        min_actors=config.actors.min_count,
        shards=config.replay.shards,
        max_role_restarts=config.run.max_role_restarts,
        checkpoints_hold_replay=config.run.checkpoint_replay == "full",
        step_timeout_s=config.run.step_timeout_s,
        rounds=_round_plan(config, actor, learner),
    )


def _round_plan(config: Config, actor: ActorPlan, learner: LearnerPlan) -> RoundPlan:
    """A round is as long as the env steps that pay for one publish period of updates."""
    per_block = learner.updates_per_call
    draws = per_block * learner.batch_size
    per_episode, ratio = config.learner.updates_per_episode, config.replay.samples_per_insert
    blocks = max(1, learner.publish_period_learner_steps // per_block)
    inserts = draws if ratio is None else blocks * draws / ratio
    return RoundPlan(
        n_env_steps=max(1, round(inserts / actor.count)) if per_episode is None else None,
        updates_per_block=per_block,
        learning=LearningRule(
            min_size=config.replay.min_size_to_sample,
            draws_per_block=draws,
            samples_per_insert=ratio,
            episodes=(
                None if per_episode is None else EpisodeLimiter(per_episode, learner.batch_size)
            ),
            free_blocks=blocks,
        ),
    )


def _cluster_plan(
    config: Config, actor: ActorPlan, replay: ReplayPlan, learner: LearnerPlan
) -> ClusterPlan:
    lockstep, ray = config.effective_schedule == "lockstep", config.ray
    return ClusterPlan(
        learner=_need(
            "learner",
            1,
            {"CPU": learner.num_cpus, "GPU": learner.num_gpus, **ray.learner_resources},
        ),
        shards=_need(
            "replay shard", config.replay.shards, {"CPU": replay.num_cpus, **ray.replay_resources}
        ),
        actors=_need(
            "actor",
            actor.count,
            {"CPU": actor.num_cpus, **ray.actor_resources},
            least=actor.count if lockstep else config.actors.min_count,
        ),
        address=ray.address,
        wait_for_resources_s=ray.wait_for_resources_s,
        ship=ray.ship,
        # Shipped files are unpacked by an agent that a lean start leaves out.
        is_lean=bool(ray.lean) and not ray.ship,
    )


def _need(role: str, count: int, each: dict[str, float], least: int | None = None) -> RoleNeed:
    amounts = {name: float(amount) for name, amount in each.items() if amount}
    return RoleNeed(role=role, count=count, least=count if least is None else least, each=amounts)
