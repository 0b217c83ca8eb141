"""The form of the block that a PyTorch learner begins with: a CUDA graph, a package, or eager.

Called by `torch_backend.py`. On a GPU the block is recorded as a CUDA graph: a handful of eager
blocks' time. On a CPU a package of the cache is used once it has been compared with the eager form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qfleet.common.errors import ConfigError
from qfleet.learner.backend import FLOAT32_TOLERANCE
from qfleet.learner.fast.compiled import CompiledBlock, load_flat_block
from qfleet.learner.fast.cuda_graph import CaptureError, record_block
from qfleet.learner.fast.fast_block import FastBlock, distance_from_eager, random_batches
from qfleet.learner.fast.learner_path import build_required
from qfleet.learner.fast.notices import say_once
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key
from qfleet.learner.fast.package_spec import PackageError, PackageSpec
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.update import LearnerState, UpdateRule


def starting_block(
    spec: PackageSpec,
    rule: UpdateRule,
    state: LearnerState,
    hyper: Hyperparameters,
    device: torch.device,
) -> FastBlock | None:
    """What a run begins with on `device`; None for the eager form.

    Raises:
        ConfigError: when `learner.compile` is `required` and there is no fast form, with the
            remedy.
    """
    mode = spec.plan.compile
    if mode == "off":
        return None
    if device.type == "cuda":
        return _graph(spec, rule, state, hyper)
    block = load_package(spec, rule, state, hyper)
    if block is None and mode == "required":
        build_required(spec.plan, spec.environment)
        block = load_package(spec, rule, state, hyper)
        if block is None:
            raise ConfigError(
                "learner.compile = required: the block was compiled but cannot be used (see the "
                "message above); use --learner.compile off"
            )
    return block


def _graph(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> FastBlock | None:
    try:
        return record_block(spec.plan, spec.environment, rule, state, hyper)
    except CaptureError as error:
        if spec.plan.compile == "required":
            raise ConfigError(
                f"learner.compile = required: the block cannot be recorded as a CUDA graph: "
                f"{error}; use --learner.compile auto or off to train with eager PyTorch"
            ) from error
        say_once(f"the learner stays eager PyTorch: no CUDA graph: {error}")
        return None


def load_package(
    spec: PackageSpec, rule: UpdateRule, state: LearnerState, hyper: Hyperparameters
) -> CompiledBlock | None:
    """The cached block, once it has been compared with the eager form; None when there is none.

    A package that is damaged, does not load or gives other results is removed, which is said.
    """
    cache = PackageCache(cache_directory())
    key = package_key(spec.describe(state.parameters, state.buffers))
    path = cache.find_or_remove(key)
    if path is None:
        return None
    try:
        block = CompiledBlock(load_flat_block(path), spec)
        with _threads(spec.plan.num_cpus):
            dtype = getattr(torch, spec.dtype)
            batches = random_batches(spec.plan, spec.environment, spec.n_updates, dtype)
            distance = distance_from_eager(block, batches, rule, state, hyper)
    except (PackageError, RuntimeError) as error:
        cache.remove(key, str(error).splitlines()[0])
        return None
    if distance > FLOAT32_TOLERANCE:
        cache.remove(key, f"differs from eager PyTorch by {distance:.1e}")
        return None
    return block


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """The learner's number of threads, which its process may not have set yet."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
