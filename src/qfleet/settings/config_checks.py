"""Rules between keys of the configuration.

The door calls `check_config` twice: before anything starts (no spec yet) and again once the
environment and the machine are known; then `resolve_config` (config_auto.py) puts numbers for
every `auto`. Everything is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qfleet.common.types import EnvironmentSpec
from qfleet.replay_server.rate_limiter import minimum_limiter_tolerance_samples
from qfleet.settings.checks.family_checks import FAMILY_RULES
from qfleet.settings.checks.frame_checks import FRAME_RULES
from qfleet.settings.checks.machine_checks import Machine, check_devices, check_memory
from qfleet.settings.checks.ray_checks import RAY_RULES
from qfleet.settings.config import Config
from qfleet.settings.config_auto import (
    block_periods,
    chunk_transitions,
    importance_sampling_end,
    importance_sampling_exponent,
    max_blocks_per_request,
    max_chunk_transitions,
    updates_per_call,
)
from qfleet.settings.problems import Problem


def check_config(
    config: Config,
    spec: EnvironmentSpec | None,
    *,
    cpus: int,
    gpus: int,
    memory_bytes: int,
    cuda_available: bool | None,
) -> list[Problem]:
    """List everything that is wrong between the keys of a valid `config`, in order of the keys.

    Args:
        config: With or without its `auto` values resolved; an `auto` always fits.
        spec: The environment, or None when it is not known yet: then memory is not checked.
        cpus: CPUs of the machine or cluster.
        gpus: GPUs of the machine or cluster.
        memory_bytes: Memory that the replay may fill.
        cuda_available: None when nobody knows yet: then nothing is said about GPUs.
    """
    machine = Machine(cpus, gpus, memory_bytes, cuda_available)
    problems = [problem for rule in _RULES for problem in rule(config)]
    problems += check_devices(config, machine)
    if spec is not None:
        problems += check_memory(config, spec, machine)
    return problems


def _check_network(config: Config) -> Iterator[Problem]:
    if config.network.kwargs and config.network.factory is None:
        yield Problem(
            "network.kwargs",
            config.network.kwargs,
            "is only for network.factory, which is null",
            "set network.factory or remove it",
        )
    if config.network.normalization == "batch" and config.learner.batch_size < 2:
        yield Problem(
            "learner.batch_size",
            config.learner.batch_size,
            "must be at least 2 with network.normalization batch",
            "raise it, or set network.normalization layer",
        )


def _check_epsilon_episodes(config: Config) -> Iterator[Problem]:
    actors = config.actors
    if actors.epsilon_decay_episodes is None:
        return
    if config.learner.updates_per_episode is None or actors.epsilon_schedule != "linear":
        yield Problem(
            "actors.epsilon_decay_episodes",
            actors.epsilon_decay_episodes,
            "needs actors.epsilon_schedule linear and learner.updates_per_episode: only then one "
            "actor counts all episodes",
            "set both, or null (then actors.epsilon_decay_env_steps counts)",
        )


def _check_actors(config: Config) -> Iterator[Problem]:
    count = config.actors.count
    if config.learner.updates_per_episode is not None:
        count = 1
    if count == "auto":
        return
    if config.actors.min_count > count:
        yield Problem(
            "actors.min_count",
            config.actors.min_count,
            f"must be at most actors.count ({count})",
            "lower it or raise actors.count",
        )


def _check_replay_sizes(config: Config) -> Iterator[Problem]:
    replay = config.replay
    if replay.shards > replay.capacity:
        yield Problem(
            "replay.shards",
            replay.shards,
            f"must be at most replay.capacity ({replay.capacity})",
            "lower it or raise replay.capacity",
        )
        return
    if config.learner.batch_size > replay.capacity:
        yield Problem(
            "learner.batch_size",
            config.learner.batch_size,
            f"must be at most replay.capacity ({replay.capacity})",
            "lower it or raise replay.capacity",
        )
    per_shard = replay.capacity // replay.shards
    # Actor slot i feeds shard i mod shards: with fewer actors than shards, some stay empty.
    fed = replay.shards
    if config.learner.updates_per_episode is not None:
        fed = 1
    elif config.actors.count != "auto":
        fed = min(fed, config.actors.count)
    if replay.min_size_to_sample > per_shard * fed:
        shards = f"{fed} of {replay.shards}" if fed < replay.shards else f"{fed}"
        yield Problem(
            "replay.min_size_to_sample",
            replay.min_size_to_sample,
            f"must be at most replay.capacity ({replay.capacity}"
            + (f": {shards} shards of {per_shard} are fed)" if replay.shards > 1 else ")"),
            "lower it or raise replay.capacity",
        )
    chunk, most = config.actors.chunk_transitions, config.actors.max_chunk_transitions
    for key, value in (("chunk_transitions", chunk), ("max_chunk_transitions", most)):
        if value != "auto" and value > per_shard:
            yield Problem(
                f"actors.{key}",
                value,
                f"must be at most the capacity of one shard ({per_shard})",
                "lower it or raise replay.capacity",
            )
    if most != "auto" and most < chunk_transitions(config):
        yield Problem(
            "actors.max_chunk_transitions",
            most,
            f"must be at least actors.chunk_transitions ({chunk_transitions(config)})",
            "raise it, or lower actors.chunk_transitions",
        )


def _check_replay_start(config: Config) -> Iterator[Problem]:
    replay, run = config.replay, config.run
    if run.max_env_steps is not None and replay.min_size_to_sample > run.max_env_steps:
        yield Problem(
            "replay.min_size_to_sample",
            replay.min_size_to_sample,
            f"must be at most run.max_env_steps ({run.max_env_steps}), or nothing is ever learned",
            "lower it or raise run.max_env_steps",
        )
    anneals = replay.sampling != "uniform" and importance_sampling_exponent(config) < 1
    end = replay.importance_sampling_end_learner_steps
    if anneals and end == "auto" and importance_sampling_end(config) is None:
        yield Problem(
            "replay.importance_sampling_end_learner_steps",
            end,
            "is the budget of updates, or what one of env steps pays for at a set "
            "samples_per_insert, or of episodes at learner.updates_per_episode; here is none",
            "set it, or run.max_learner_steps; null leaves β as it begins",
        )


def _check_limiter(config: Config) -> Iterator[Problem]:
    tolerance, ratio = config.replay.limiter_tolerance_samples, config.replay.samples_per_insert
    if tolerance == "auto" or ratio is None:
        return
    chunk = max_chunk_transitions(config)
    updates = updates_per_call(config) * max_blocks_per_request(config)
    batch = config.learner.batch_size
    least = minimum_limiter_tolerance_samples(ratio, chunk, batch * updates)
    if tolerance < least:
        yield Problem(
            "replay.limiter_tolerance_samples",
            tolerance,
            f"must be at least {least} or both sides wait for ever: (samples_per_insert {ratio:g} "
            f"x chunk_transitions {chunk} + batch_size {batch} x {updates} updates) "
            "/ 2",
            "set it to auto or raise it",
        )


def _check_episode_mode(config: Config) -> Iterator[Problem]:
    if config.learner.updates_per_episode is None:
        return
    why = "with learner.updates_per_episode (one actor plays one episode, then learns)"
    for key, value in (
        ("actors.count", config.actors.count),
        ("actors.envs_per_actor", config.actors.envs_per_actor),
    ):
        if value not in (1, "auto"):
            yield Problem(key, value, f"must be 1 or auto {why}", "set it to 1")
    if config.replay.samples_per_insert is not None:
        yield Problem(
            "replay.samples_per_insert",
            config.replay.samples_per_insert,
            "must be null with learner.updates_per_episode, which already sets the ratio",
            "set one of the two to null",
        )


def _check_periods(config: Config) -> Iterator[Problem]:
    learner, updates = config.learner, config.learner.updates_per_call
    if learner.target_tau is not None and not learner.target_network:
        yield Problem(
            "learner.target_tau",
            learner.target_tau,
            "must be null without a target network (learner.target_network is false)",
            "remove it or set learner.target_network true",
        )
    if updates == "auto":
        return
    for key, period in block_periods(config).items():
        if period % updates:
            nearest = max(updates, round(period / updates) * updates)
            yield Problem(
                key,
                period,
                f"must be a multiple of learner.updates_per_call ({updates})",
                f"set it to {nearest}, or learner.updates_per_call to auto",
            )


def _check_schedule(config: Config) -> Iterator[Problem]:
    if config.run.schedule == "async" and config.runtime == "local":
        yield Problem(
            "run.schedule",
            "async",
            "must be auto or lockstep with --runtime local, where nothing runs at the same time",
            "set it to auto, or use --runtime ray",
        )
    if config.actors.max_memory_gb is not None and config.effective_schedule == "lockstep":
        yield Problem(
            "actors.max_memory_gb",
            config.actors.max_memory_gb,
            "replaces an actor's process while the others play on, which only async runs can",
            "remove it, or use --runtime ray with run.schedule async",
        )


_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _check_network,
    *FAMILY_RULES,
    *FRAME_RULES,
    *RAY_RULES,
    _check_epsilon_episodes,
    _check_actors,
    _check_replay_sizes,
    _check_replay_start,
    _check_limiter,
    _check_episode_mode,
    _check_periods,
    _check_schedule,
)
