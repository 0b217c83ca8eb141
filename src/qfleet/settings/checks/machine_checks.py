"""Rules between the configuration and the machine: GPUs and memory.

Called by `config_checks.py`.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from qfleet.common.messages import chunk_bytes
from qfleet.common.sample_message import MAX_SAMPLE_BYTES, shard_sample_bytes
from qfleet.common.types import EnvironmentSpec
from qfleet.common.wire import MAX_CHUNK_BYTES
from qfleet.replay_server.row_bytes import row_bytes
from qfleet.settings.config import Config
from qfleet.settings.problems import Problem


class Machine(NamedTuple):
    """What the rules about hardware are held against."""

    cpus: int
    gpus: int
    memory_bytes: int
    cuda_available: bool | None
    """None: not known yet, nothing is said about GPUs."""


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
    replay = config.replay
    return replay.capacity * row_bytes(spec, replay.sampling, replay.compression)


def check_devices(config: Config, machine: Machine) -> Iterator[Problem]:
    """Whether the learner gets the GPU that it asks for."""
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


def check_chunk(
    config: Config, spec: EnvironmentSpec, round_env_steps: int | None
) -> Iterator[Problem]:
    """Whether the largest chunk that an actor can make is one that crosses to another process.

    Args:
        config: With every `auto` resolved.
        spec: Of the environment.
        round_env_steps: Env steps of an actor in a lockstep round; None: one episode.
    """
    actors = config.actors
    assert isinstance(actors.envs_per_actor, int), "resolved"
    assert isinstance(actors.max_chunk_transitions, int), "resolved"
    if config.runtime != "ray":
        return
    steps: int | Literal["auto"] | None = actors.max_chunk_transitions
    key, remedy = "actors.max_chunk_transitions", "lower it and actors.chunk_transitions"
    if config.effective_schedule == "lockstep":
        key, remedy = "run.schedule", "use async, or --runtime local, where no chunk is sent"
        steps = config.eval.max_episode_steps if round_env_steps is None else round_env_steps
    assert isinstance(steps, int), "resolved"
    rows = steps + actors.envs_per_actor * actors.n_step  # ends of episodes come all at once
    needed, one = chunk_bytes(spec, rows), chunk_bytes(spec, 1)
    if needed > MAX_CHUNK_BYTES:
        yield Problem(
            key,
            steps if key.startswith("actors") else config.run.schedule,
            f"makes chunks of up to {rows} transitions ({steps} + envs_per_actor "
            f"{actors.envs_per_actor} x n_step {actors.n_step}) of {one / 2**20:.3g} MiB each, "
            f"{needed / 2**20:,.0f} MiB, and a chunk may have {MAX_CHUNK_BYTES // 2**20} MiB",
            f"{remedy}, lower actors.envs_per_actor, or make observations smaller",
        )


def check_request(config: Config, spec: EnvironmentSpec) -> Iterator[Problem]:
    """Whether the largest answer of a replay shard is one that crosses to the learner's process.

    Args:
        config: With every `auto` resolved.
        spec: Of the environment.
    """
    learner = config.learner
    if config.runtime != "ray":
        return
    factors = {
        "max_blocks_per_request": learner.max_blocks_per_request,
        "updates_per_call": learner.updates_per_call,
        "batch_size": learner.batch_size,
    }
    numbers = [number for number in factors.values() if isinstance(number, int)]
    assert len(numbers) == len(factors), "resolved"
    draws = math.prod(numbers)  # one shard may hold all that is drawn
    needed = shard_sample_bytes(spec, draws)
    if needed > MAX_SAMPLE_BYTES:
        key = next((key for key, number in factors.items() if number != 1), "batch_size")
        product = " x ".join(f"{key} {number}" for key, number in factors.items())
        yield Problem(
            f"learner.{key}",
            factors[key],
            f"makes requests of {draws:,} draws ({product}) of "
            f"{needed / draws / 2**10:.3g} KiB each, {needed / 2**20:,.0f} MiB, and an answer "
            f"may have {MAX_SAMPLE_BYTES // 2**20} MiB",
            "lower it, or make observations smaller",
        )


def check_memory(config: Config, spec: EnvironmentSpec, machine: Machine) -> Iterator[Problem]:
    """Whether the full replay fits into memory."""
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
