"""The one place that chooses what computes a run's updates: machine code, a CUDA graph or PyTorch.

Called by the learner at its start and when a package has been built beside its run. On a CPU with
`learner.compile: auto` a package in the cache is used from the first update on; lockstep runs know
before their start whether there is one (`has_fast_form`). No torch here: a learner that begins with
a package does without.
"""

from __future__ import annotations

import math

from qfleet.common.errors import ConfigError
from qfleet.common.seeding import seed_int
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.learner.backend import FLOAT32_TOLERANCE, LearnerBackend
from qfleet.learner.fast.initial_network import initial_network
from qfleet.learner.fast.libtorch import BlockLibrary, libtorch
from qfleet.learner.fast.notices import say_once
from qfleet.learner.fast.package_backend import PackageBackend
from qfleet.learner.fast.package_builds import build_required
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key
from qfleet.learner.fast.package_proof import distance_from_proof
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.plan import LearnerPlan


def starting_backend(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> LearnerBackend:
    """What a run begins with on `device`.

    Raises:
        ConfigError: when `learner.compile` is `required` and there is no fast form, with the
            remedy.
    """
    is_package_of_use = device != "cpu" or plan.is_compiled_on_cpu
    if plan.compile == "off" or (plan.compile == "auto" and not is_package_of_use):
        return eager_backend(plan, spec, device)
    if not is_package_of_use:
        raise ConfigError(
            f"learner.compile = required: network.kind {plan.network.kind} is not compiled on a "
            "CPU, where convolutions take the time; use --learner.compile auto"
        )
    if device != "cpu":
        return _graph_backend(plan, spec, device)
    package = cached_backend(plan, spec)
    if package is None and plan.compile == "required":
        build_required(plan, spec)
        package = cached_backend(plan, spec)
        if package is None:
            raise ConfigError(
                "learner.compile = required: the block was compiled but cannot be used (see the "
                "message above); use --learner.compile off"
            )
    return package or eager_backend(plan, spec, device)


def eager_backend(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> LearnerBackend:
    """Eager PyTorch on `device`."""
    from qfleet.learner import torch_backend  # takes half a second to import

    return torch_backend.eager_backend(plan, spec, device)


def cached_backend(plan: LearnerPlan, spec: EnvironmentSpec) -> LearnerBackend | None:
    """A learner at its start on the package in the cache; None when there is none.

    A package that is damaged, does not load or gives other results than its proof says is removed,
    which is said; so is that PyTorch's library cannot be used.
    """
    package_spec = PackageSpec(plan, spec)
    parameters, buffers = _first_arrays(plan, spec)
    package_cache = PackageCache(cache_directory())
    key = package_key(package_spec.describe(parameters, buffers))
    path = package_cache.find_or_remove(key)
    if path is None:
        return None
    try:
        torch = libtorch()
    except PackageError as error:
        say_once(f"the learner stays eager PyTorch: {error}")
        return None
    try:
        torch.set_num_threads(math.ceil(plan.num_cpus))
        library = BlockLibrary(path)
        distance = distance_from_proof(torch, library, path)
        if not distance <= FLOAT32_TOLERANCE:
            raise PackageError(f"differs from eager PyTorch by {distance:.1e}")
        return PackageBackend(torch, library, package_spec, parameters, buffers)
    except PackageError as error:
        package_cache.remove(key, str(error))
        return None


def has_fast_form(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> bool:
    """Whether `compile: required` would be served on `device` without building anything.

    Asked once before a lockstep run with `auto`: eager and fast differ in their last bits, so what
    it computes with is part of its configuration. On a GPU the built-in networks are always
    recorded as a graph; of a custom one nobody knows before it was tried, so it does not count.
    """
    if device != "cpu":
        return plan.network.factory is None
    cache = PackageCache(cache_directory())
    has_packages = any(cache.directory.glob("*.json"))
    if not plan.is_compiled_on_cpu or not has_packages:  # no network is made for nothing
        return False
    description = PackageSpec(plan, spec).describe(*_first_arrays(plan, spec))
    return cache.find(package_key(description)) is not None


def _first_arrays(
    plan: LearnerPlan, spec: EnvironmentSpec
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The seeded network's parameters and buffers; a custom one is made by PyTorch."""
    if plan.network.factory is None and not plan.network.is_convolutional:
        return initial_network(plan.network, spec, seed_int(plan.seed, "learner.network"))
    from qfleet.learner.block_inputs import first_arrays

    return first_arrays(plan, spec)


def _graph_backend(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> LearnerBackend:
    from qfleet.learner.fast import cuda_graph

    try:
        return cuda_graph.graph_backend(plan, spec, device)
    except cuda_graph.CaptureError as error:
        if plan.compile == "required":
            raise ConfigError(
                f"learner.compile = required: the block cannot be recorded as a CUDA graph: "
                f"{error}; use --learner.compile auto or off to train with eager PyTorch"
            ) from error
        say_once(f"the learner stays eager PyTorch: no CUDA graph: {error}")
        return eager_backend(plan, spec, device)
