"""Rules between keys of the configuration.

The door calls `check_config` twice: before anything starts (no spec yet) and again once the
environment and the machine are known; then `resolve_config` (config_auto.py) puts numbers for
every `auto`. Everything is reported at once.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qfleet.common.config import Config
from qfleet.common.config_auto import (
    block_periods,
    chunk_transitions,
    max_blocks_per_request,
    max_chunk_transitions,
    minimum_limiter_tolerance_samples,
    resolve_config,
    updates_per_call,
)
from qfleet.common.types import EnvironmentSpec, transition_columns

__all__ = [
    "Machine",
    "Problem",
    "check_config",
    "minimum_limiter_tolerance_samples",
    "nvidia_gpus",
    "replay_bytes",
    "resolve_config",
    "show_value",
]

_PRIORITY_BYTES_PER_ROW = 16  # one float64 leaf and one inner node of the sum tree


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that cannot be used; `str()` is the line that the user reads."""

    key: str
    value: object
    requirement: str
    remedy: str = ""
    origin: str = ""
    """Where the value came from (`run.yaml:3`, `--learner.batch_size`); the door fills it in."""

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        value = "" if self.value == "" else f" = {show_value(self.value)}"
        return f"{self.key}{value}{origin}: {self.requirement}{remedy}"


class Machine(NamedTuple):
    """What the rules about hardware are held against."""

    cpus: int
    gpus: int
    memory_bytes: int
    cuda_available: bool | None
    """None: not known yet, nothing is said about GPUs."""


def show_value(value: object) -> str:
    """Write a value as YAML would, short enough for one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nvidia_gpus() -> int:
    """Count NVIDIA devices without importing torch, which takes seconds; 0 means none for sure.

    A hidden device (`CUDA_VISIBLE_DEVICES`) does not count. WSL has no device files; there one GPU
    is assumed when `nvidia-smi` is installed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    present = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))
    if present == 0:
        present = int(shutil.which("nvidia-smi") is not None)
    return present if visible is None else min(present, len(visible.split(",")))


def replay_bytes(config: Config, spec: EnvironmentSpec) -> int:
    """Bytes that all shards together hold when full."""
    row = sum(
        np.dtype(column.dtype).itemsize * math.prod(column.shape)
        for column in transition_columns(spec)
    )
    overhead = _PRIORITY_BYTES_PER_ROW if config.replay.sampling == "prioritized" else 0
    return config.replay.capacity * (row + overhead)


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
    problems += _check_devices(config, machine)
    if spec is not None:
        problems += _check_memory(config, spec, machine)
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
    anneals = replay.sampling == "prioritized" and replay.importance_sampling_exponent < 1
    if anneals and run.max_env_steps is None and run.max_learner_steps is None:
        yield Problem(
            "replay.importance_sampling_exponent",
            replay.importance_sampling_exponent,
            "rises to 1 at the step budget, and this run has none",
            "set run.max_learner_steps or run.max_env_steps, or set it to 1",
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


def _check_devices(config: Config, machine: Machine) -> Iterator[Problem]:
    device, num_gpus = config.learner.device, config.learner.num_gpus
    wants_cuda = device.startswith("cuda")
    if wants_cuda and num_gpus == 0:
        yield Problem(
            "learner.device",
            device,
            "needs a GPU, but learner.num_gpus is 0",
            "set learner.num_gpus to 1 or auto, or learner.device to cpu",
        )
    elif config.runtime == "ray" and device.startswith("cuda:"):
        reserved = 1 if num_gpus == "auto" else num_gpus
        if int(device[5:]) >= reserved:
            yield Problem(
                "learner.device",
                device,
                f"Ray shows the learner only its own {reserved} GPU(s), counted from cuda:0",
                "set learner.device to cuda and choose the GPU with CUDA_VISIBLE_DEVICES",
            )
    if machine.cuda_available is None or (machine.cuda_available and machine.gpus > 0):
        return
    if wants_cuda and num_gpus != 0:
        yield Problem(
            "learner.device",
            device,
            "needs an NVIDIA GPU that torch can use, and there is none here",
            "set it to auto or cpu; `qfleet doctor` says what is missing",
        )
    elif num_gpus not in ("auto", 0):
        yield Problem(
            "learner.num_gpus", num_gpus, "there is no NVIDIA GPU here", "set it to auto or 0"
        )


def _check_memory(config: Config, spec: EnvironmentSpec, machine: Machine) -> Iterator[Problem]:
    needed = replay_bytes(config, spec)
    if needed > machine.memory_bytes:
        fits = config.replay.capacity * machine.memory_bytes // needed
        yield Problem(
            "replay.capacity",
            config.replay.capacity,
            f"needs {needed / 2**30:.2f} GiB ({needed // config.replay.capacity} bytes for each "
            f"transition) and there are {machine.memory_bytes / 2**30:.2f} GiB of memory",
            f"set it to at most {fits}",
        )


_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _check_network,
    _check_actors,
    _check_replay_sizes,
    _check_replay_start,
    _check_limiter,
    _check_episode_mode,
    _check_periods,
    _check_schedule,
)
