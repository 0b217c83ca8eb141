"""From a valid configuration to one without an `auto` that decides anything.

Called by the composition root before anything is started.
"""

from __future__ import annotations

import os
import sys

from qfleet.cluster.ray_cluster import cluster_size, joins_cluster
from qfleet.common.envs import describe_environment
from qfleet.common.errors import ConfigError
from qfleet.common.role_place import memory_bytes
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast.backends import has_fast_form
from qfleet.run.learner_path import local_device, remote_device
from qfleet.settings.checks.machine_checks import check_chunk, check_request, nvidia_gpus
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_checks import check_config
from qfleet.settings.config_loading import error_message
from qfleet.settings.plans import run_plans


def check_and_resolve(config: Config) -> tuple[EnvironmentSpec, Config]:
    """The environment's spec and the configuration with every `auto` as a number.

    Raises:
        ConfigError: every problem at once, each with key, value and remedy.
    """
    spec = describe_environment(config.env)
    gpus, cpus = nvidia_gpus(), os.cpu_count() or 1
    # In a cluster it is other hosts that count: they are asked once roles are there.
    is_elsewhere = config.runtime == "ray" and joins_cluster(config.ray.address)
    problems = check_config(
        config,
        spec,
        cpus=cpus,
        gpus=gpus,
        memory_bytes=sys.maxsize if is_elsewhere else memory_bytes(),
        cuda_available=None if is_elsewhere else gpus > 0,
    )
    if problems:
        raise ConfigError(error_message(problems))
    if config.network.factory is not None:
        from qfleet.common.network_trial import try_factory

        try_factory(config.network, spec)
    if config.runtime == "ray" and "auto" in (config.actors.count, config.learner.num_gpus):
        cpus, gpus = cluster_size(config.ray.address) or (cpus, gpus)
    resolved = resolve_config(config, spec, cpus=cpus, gpus=gpus)
    if resolved.learner.precision == "auto":
        resolved = _with_measured_precision(resolved, spec)
    rounds = run_plans(resolved).fleet.rounds
    problems = [*check_chunk(resolved, spec, rounds.n_env_steps), *check_request(resolved, spec)]
    if problems:
        raise ConfigError(error_message(problems))
    if resolved.effective_schedule == "lockstep":
        resolved = _with_decided_path(resolved, spec, config.learner.compile == "auto")
    return spec, resolved


def _with_measured_precision(config: Config, spec: EnvironmentSpec) -> Config:
    """What this machine updates faster in: once, before the start, and written into config.yaml."""
    from qfleet.learner.precision_choice import faster_precision

    def given(precision: str) -> Config:
        learner = config.learner.model_copy(update={"precision": precision})
        return config.model_copy(update={"learner": learner})

    return given(faster_precision(run_plans(given("float32")).learner, spec)[0])


def _with_decided_path(config: Config, spec: EnvironmentSpec, is_auto: bool) -> Config:
    """The device, and for `compile: auto` the path that is there now, written down.

    Devices and paths differ in the last bits: who runs config.yaml again or resumes must take the
    same ones, or be told that they are not there.
    """
    device = (local_device if config.runtime == "local" else remote_device)(config)
    decided: dict[str, object] = {"device": device}
    if is_auto and has_fast_form(run_plans(config).learner, spec, device):
        decided["compile"] = "required"
    return config.model_copy(update={"learner": config.learner.model_copy(update=decided)})
