"""The numbers behind every `auto`.

Called once, after `config_checks.check_config`; `plans.py` then makes the roles' plans of it.
"""

from __future__ import annotations

import math
from typing import TypeVar

from qfleet.actors.plan import MAX_UNACKNOWLEDGED_CHUNKS
from qfleet.common.episode_limits import DEFAULT_EPISODE_LIMIT, episode_limit
from qfleet.common.messages import chunk_bytes
from qfleet.common.types import EnvironmentSpec
from qfleet.common.wire import MAX_CHUNK_BYTES
from qfleet.learner.plan import REQUESTS_IN_FLIGHT
from qfleet.replay_server.rate_limiter import minimum_limiter_tolerance_samples
from qfleet.settings.config import Config

DEFAULT_ENVS_PER_ACTOR = 16
MAX_AUTO_UPDATES_PER_CALL = 50
MAX_AUTO_BLOCKS_PER_REQUEST = 4
MAX_AUTO_REQUEST_BYTES = 32 * 1024 * 1024
"""Of stacked frames in one answer of the replay; two are on their way at a time."""
CHUNK_GROWTH = 8
"""How far an `auto` chunk may grow."""
SHARD_CPUS = 0.5
"""CPUs of a replay shard."""
EVALUATOR_CPUS = 0.0
"""Set aside for the evaluator: it mostly waits, and without it always has a place."""

ConfigT = TypeVar("ConfigT", bound=Config)


def resolve_config(
    config: ConfigT,
    spec: EnvironmentSpec | None,
    *,
    cpus: int,
    gpus: int,
) -> ConfigT:
    """Replace each `auto` that is a number by its number.

    `learner.device: auto` becomes `cpu` when the learner gets no GPU, else torch has the last
    word. `learner.compile: auto` becomes `off` in lockstep, where it decides bits, unless the
    caller finds a fast form; an asynchronous run decides on its way. `run.schedule`,
    `metrics.console` and `eval.solved_at_return` stay as they are.

    Args:
        config: Must pass `check_config`.
        spec: Of the environment, for its time limit; None where no environment is made.
        cpus: CPUs of the machine or cluster.
        gpus: GPUs that the learner may have.
    """
    actors, learner = config.actors, config.learner
    is_decided = learner.compile != "auto" or config.effective_schedule == "async"
    count = _actor_count(config, cpus)
    num_gpus = learner.num_gpus
    if num_gpus == "auto":
        num_gpus = int(gpus > 0 and learner.device != "cpu")

    def fits(key: str) -> int:
        is_auto = actors.chunk_transitions == getattr(actors, key) == "auto"
        return _sendable_transitions(config, spec) if is_auto and spec is not None else 2**62

    numbers: dict[str, dict[str, object]] = {
        "actors": {
            "count": count,
            "envs_per_actor": _envs_per_actor(config),
            **(
                {"epsilon_schedule": "constant", "epsilon_end": 0.0, "epsilon_decay_episodes": None}
                if config.network.noisy
                else {}
            ),
            "chunk_transitions": min(chunk_transitions(config), fits("chunk_transitions")),
            "max_chunk_transitions": min(
                max_chunk_transitions(config), fits("max_chunk_transitions")
            ),
        },
        "replay": {
            "limiter_tolerance_samples": _limiter_tolerance(config, count),
            "priority_exponent": priority_exponent(config),
            "importance_sampling_exponent": importance_sampling_exponent(config),
            "importance_sampling_end_learner_steps": importance_sampling_end(config),
        },
        "eval": {"max_episode_steps": _max_episode_steps(config, spec)},
        "learner": {
            "updates_per_call": updates_per_call(config),
            "max_blocks_per_request": max_blocks_per_request(config),
            "learning_rate_end_learner_steps": learning_rate_end(config),
            "num_gpus": num_gpus,
            "compile": learner.compile if is_decided else "off",
            "precision": _precision(config, num_gpus),
            "device": "cpu" if learner.device == "auto" and num_gpus == 0 else learner.device,
        },
    }
    return config.model_copy(
        update={
            "actors": actors.model_copy(update=numbers["actors"]),
            "replay": config.replay.model_copy(update=numbers["replay"]),
            "eval": config.eval.model_copy(update=numbers["eval"]),
            "learner": learner.model_copy(update=numbers["learner"]),
        }
    )


def _precision(config: Config, num_gpus: int) -> str:
    """`auto` is left for a CPU that learns from frames, where the caller measures."""
    learner = config.learner
    is_measured = config.env.observation == "pixels" and (learner.device == "cpu" or num_gpus == 0)
    return "float32" if learner.precision == "auto" and not is_measured else learner.precision


def _sendable_transitions(config: Config, spec: EnvironmentSpec) -> int:
    """At what length an actor must send its chunk, so that it fits into a message."""
    envelope = chunk_bytes(spec, 0)
    most = (MAX_CHUNK_BYTES - envelope) // (chunk_bytes(spec, 1) - envelope)
    return max(1, most - _envs_per_actor(config) * config.actors.n_step)


def _max_episode_steps(config: Config, spec: EnvironmentSpec | None) -> int:
    wanted = config.eval.max_episode_steps
    if wanted != "auto":
        return wanted
    return DEFAULT_EPISODE_LIMIT if spec is None else episode_limit(spec)


def _actor_count(config: Config, cpus: int) -> int:
    """One actor for each CPU that learner and replay leave free, as many as the rules demand."""
    actors = config.actors
    if actors.count != "auto":
        return actors.count
    if config.learner.updates_per_episode is not None:
        return 1
    least = max(1, actors.min_count, config.replay.shards)
    if config.runtime == "local":
        return least
    free = cpus - config.learner.num_cpus - config.replay.shards * SHARD_CPUS
    return max(least, math.floor(free / math.ceil(actors.num_cpus)))


def _envs_per_actor(config: Config) -> int:
    if config.actors.envs_per_actor != "auto":
        return config.actors.envs_per_actor
    return 1 if config.learner.updates_per_episode is not None else DEFAULT_ENVS_PER_ACTOR


def chunk_transitions(config: Config) -> int:
    """Transitions per push, as set or as `auto` gives them."""
    if config.actors.chunk_transitions != "auto":
        return config.actors.chunk_transitions
    per_shard = max(1, config.replay.capacity // config.replay.shards)
    return min(max(32, _envs_per_actor(config) * 8), per_shard)


def max_chunk_transitions(config: Config) -> int:
    """Transitions of the largest push, as set or as `auto` gives them."""
    if config.actors.max_chunk_transitions != "auto":
        return config.actors.max_chunk_transitions
    chunk = chunk_transitions(config)
    if config.actors.chunk_transitions != "auto":
        return chunk
    per_shard = max(1, config.replay.capacity // config.replay.shards)
    most = min(CHUNK_GROWTH * chunk, per_shard)
    tolerance, ratio = config.replay.limiter_tolerance_samples, config.replay.samples_per_insert
    if tolerance != "auto" and ratio is not None:
        # The largest one that cannot deadlock in the window that was set.
        room = 2 * tolerance - config.learner.batch_size * updates_per_call(config)
        most = min(most, math.floor(room / ratio))
    return max(chunk, most)


def max_blocks_per_request(config: Config) -> int:
    """Blocks of the largest replay request, as set or as `auto` gives them."""
    learner, tolerance = config.learner, config.replay.limiter_tolerance_samples
    if learner.max_blocks_per_request != "auto":
        return learner.max_blocks_per_request
    if learner.updates_per_call != "auto":
        return 1
    block_bytes = _batch_bytes(config) * updates_per_call(config)
    most = max(1, min(MAX_AUTO_BLOCKS_PER_REQUEST, MAX_AUTO_REQUEST_BYTES // block_bytes))
    if tolerance != "auto" and config.replay.samples_per_insert is not None:
        per_chunk = config.replay.samples_per_insert * max_chunk_transitions(config)
        room = 2 * tolerance - per_chunk
        most = min(most, math.floor(room / (learner.batch_size * updates_per_call(config))))
    return max(1, most)


def updates_per_call(config: Config) -> int:
    """K: the largest block, up to 50 updates or 32 MB of frames, that ends wherever one is due."""
    if config.learner.updates_per_call != "auto":
        return config.learner.updates_per_call
    common = math.gcd(*block_periods(config).values())
    most = min(MAX_AUTO_UPDATES_PER_CALL, MAX_AUTO_REQUEST_BYTES // _batch_bytes(config))
    return next(k for k in range(max(1, most), 0, -1) if common % k == 0)


def _batch_bytes(config: Config) -> int:
    """Bytes of a batch's two stacks of frames; states are small."""
    env = config.env
    frames = env.frame_stack * math.prod(env.frame_shape) if env.observation == "pixels" else 0
    return max(1, 2 * frames * config.learner.batch_size)


def _limiter_tolerance(config: Config, count: int) -> int:
    """Twice what all chunks and requests in flight move, so that neither side stops for them."""
    replay = config.replay
    if replay.limiter_tolerance_samples != "auto":
        return replay.limiter_tolerance_samples
    ratio, block = (
        replay.samples_per_insert or 1.0,
        config.learner.batch_size * updates_per_call(config),
    )
    in_flight = chunk_transitions(config) * MAX_UNACKNOWLEDGED_CHUNKS * count
    usual = 2 * (math.ceil(ratio * in_flight) + block * REQUESTS_IN_FLIGHT)
    largest_request = block * max_blocks_per_request(config)
    least = minimum_limiter_tolerance_samples(ratio, max_chunk_transitions(config), largest_request)
    return max(usual, least)


def priority_exponent(config: Config) -> float:
    """α, as set or as Schaul et al. 2016 chose it for each way of prioritizing."""
    replay = config.replay
    if replay.priority_exponent != "auto":
        return replay.priority_exponent
    return 0.7 if replay.sampling == "rank" else 0.6


def importance_sampling_exponent(config: Config) -> float:
    """β at the start, as set or as Schaul et al. 2016 chose it."""
    replay = config.replay
    if replay.importance_sampling_exponent != "auto":
        return replay.importance_sampling_exponent
    return 0.5 if replay.sampling == "rank" else 0.4


def importance_sampling_end(config: Config) -> int | None:
    """The learner step at which β reaches 1, as set or as the budgets give it; None: never."""
    replay = config.replay
    if replay.importance_sampling_end_learner_steps != "auto":
        return replay.importance_sampling_end_learner_steps
    if replay.sampling == "uniform" or importance_sampling_exponent(config) == 1:
        return None
    return _budget_learner_steps(config)


def learning_rate_end(config: Config) -> int | None:
    """The learner step at which the step size has reached its end; None: no budget says."""
    learner = config.learner
    if learner.learning_rate_end_learner_steps != "auto":
        return learner.learning_rate_end_learner_steps
    if learner.learning_rate_schedule == "constant":
        return None
    return _budget_learner_steps(config)


def _budget_learner_steps(config: Config) -> int | None:
    """Updates of the whole run; a budget of env steps or episodes as the updates it pays for."""
    replay, run = config.replay, config.run
    if run.max_learner_steps is not None:
        return run.max_learner_steps
    if run.max_episodes is not None and config.learner.updates_per_episode is not None:
        return run.max_episodes * config.learner.updates_per_episode
    if run.max_env_steps is None or replay.samples_per_insert is None:
        return None
    samples = (run.max_env_steps - replay.min_size_to_sample) * replay.samples_per_insert
    return max(1, round(samples / config.learner.batch_size))


def block_periods(config: Config) -> dict[str, int]:
    """The keys that say after how many updates something happens between two blocks."""
    learner = config.learner
    periods = {"learner.publish_period_learner_steps": learner.publish_period_learner_steps}
    if learner.target_network and learner.target_tau is None:
        periods["learner.target_update_period_learner_steps"] = (
            learner.target_update_period_learner_steps
        )
    periods["eval.period_learner_steps"] = config.eval.period_learner_steps
    if learner.updates_per_episode is not None:
        periods["learner.updates_per_episode"] = learner.updates_per_episode
    return periods
