"""The graph that a package is compiled from computes what the eager form does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from qfleet.common.types import EnvironmentSpec
from qfleet.learner.backend import N_MEASURED
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.build_block import prebuild
from qfleet.learner.fast.flat_block import StateTaker, flat_block, flat_state
from qfleet.learner.fast.libtorch import BlockLibrary, libtorch
from qfleet.learner.fast.package_spec import PackageSpec
from qfleet.learner.fast.traced_block import trace_block
from qfleet.learner.noise import N_FORWARDS, noise_size
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import (
    Batches,
    BlockFunction,
    BlockResult,
    LearnerState,
    UpdateRule,
    copy_tensors,
    eager_block,
)

# As precise as the block, so that no rounding of an observation hides what differs.
SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f8", 2, 475.0, 500)
TOLERANCE = 1e-6
"""Of every parameter's largest magnitude, after 1,000 updates in float64."""


class Inputs(NamedTuple):
    """What a block needs beside its batches."""

    rule: UpdateRule
    state: LearnerState
    hyper: Hyperparameters


def inputs_of(spec: PackageSpec) -> Inputs:
    dtype = getattr(torch, spec.dtype)
    return Inputs(*initial_block_inputs(spec.plan, spec.environment, "cpu", dtype))


def batches_of(seed: int, spec: PackageSpec, n_updates: int) -> Batches:
    """Targets that a network can learn, so that rounding errors do not grow without bound."""
    rng = np.random.default_rng(seed)
    extent = (n_updates, spec.plan.batch_size)
    size = noise_size(spec.plan, spec.environment)
    numbers = rng.normal(size=(2, *extent, *spec.environment.observation_shape))
    if spec.observation_dtype == np.uint8:
        numbers = rng.integers(0, 256, numbers.shape)
    observations = torch.from_numpy(numbers.astype(spec.observation_dtype))

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array, dtype=getattr(torch, spec.dtype))

    returns = numbers[0].mean(axis=tuple(range(2, numbers.ndim - 1)))  # [K, B, *O] -> [K, B]
    return Batches(
        observations[0],
        torch.as_tensor(rng.integers(0, 2, extent)),
        tensor(returns),
        tensor(np.full(extent, 0.5)),
        observations[1],
        tensor(rng.uniform(0.5, 1.0, extent)),
        tensor(rng.normal(size=(n_updates, N_FORWARDS, size))) if size else None,
    )


def block_of(run: Callable[..., Sequence[Tensor]], rule: UpdateRule) -> BlockFunction:
    """A flat function as a block."""

    def block(state: LearnerState, batches: Batches, hyper: Hyperparameters) -> BlockResult:
        results = run(*flat_state(state), *batches.tensors(), *hyper)
        new = StateTaker(results).state(state, target=rule.polyak)
        return BlockResult(new, *results[-N_MEASURED:])

    return block


def synced(state: LearnerState) -> LearnerState:
    return state._replace(
        target_parameters=copy_tensors(state.parameters),
        target_buffers=copy_tensors(state.buffers),
    )


def distance_of_blocks(
    block: BlockFunction, spec: PackageSpec, inputs: Inputs, n_blocks: int = 250
) -> float:
    """Largest relative distance of any result of all blocks; hard syncs every second block."""
    rule, eager, hyper = inputs
    ours, worst, run = eager, 0.0, eager_block(rule)
    for index in range(n_blocks):
        batches = batches_of(index, spec, 4)
        expected, got = run(eager, batches, hyper), block(ours, batches, hyper)
        pairs = zip(
            (*flat_state(expected.state), *expected[1:]),
            (*flat_state(got.state), *got[1:]),
            strict=True,
        )
        for a, b in pairs:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            scale = max(float(a.abs().max()), 1e-3)
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
        eager, ours = expected.state, got.state
        assert list(eager.parameters) == list(ours.parameters)
        if rule.target_network and not rule.polyak and index % 2:
            eager, ours = synced(eager), synced(ours)
    return worst


def test_trace_block_1000_updates_float64_equal_eager(
    variant: dict[str, Any], plan_of: Callable[..., LearnerPlan]
) -> None:
    spec = PackageSpec(plan_of(**variant), SPEC, "float64")
    inputs = inputs_of(spec)
    graph, _ = trace_block(spec, *inputs)
    block = block_of(graph, inputs.rule)
    assert distance_of_blocks(block, spec, inputs) < TOLERANCE


def test_trace_block_of_each_member_equals_eager(
    member: dict[str, Any], plan_of: Callable[..., LearnerPlan]
) -> None:
    spec = PackageSpec(plan_of(**member), SPEC, "float64")
    inputs = inputs_of(spec)
    graph, _ = trace_block(spec, *inputs)
    distance = distance_of_blocks(block_of(graph, inputs.rule), spec, inputs, n_blocks=5)
    assert distance < TOLERANCE


def test_trace_block_takes_observations_as_they_are_stored(
    plan_of: Callable[..., LearnerPlan],
) -> None:
    stored = replace(SPEC, observation_dtype="|u1", observation_shape=(3, 4))
    spec = PackageSpec(plan_of(learning_rate=1e-6), stored)
    rule, state, hyper = inputs_of(spec)
    graph, flat = trace_block(spec, rule, state, hyper)
    observations = flat[len(flat_state(state))]
    assert (observations.dtype, tuple(observations.shape)) == (torch.uint8, (4, 4, 3, 4))
    batches = batches_of(1, spec, 4)
    results = [
        run(*flat_state(state), *batches.tensors(), *hyper)
        for run in (flat_block(rule, state), graph)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def machine_code(library: BlockLibrary) -> Callable[..., list[Tensor]]:
    """A package's call from torch's tensors to torch's tensors."""
    torch_library = libtorch()

    def run(*flat: Tensor) -> list[Tensor]:
        results = library.run([torch_library.copy(tensor.numpy()) for tensor in flat])
        arrays = [torch_library.array(tensor) for tensor in results]
        torch_library.release(results)
        return [torch.from_numpy(array) for array in arrays]

    return run


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_compiled_1000_updates_float64_equal_eager(
    variant: dict[str, Any], plan_of: Callable[..., LearnerPlan]
) -> None:
    spec = PackageSpec(plan_of(**variant), SPEC, "float64")
    inputs = inputs_of(spec)
    library = BlockLibrary(prebuild(spec.plan, SPEC, "float64"))
    block = block_of(machine_code(library), inputs.rule)
    assert distance_of_blocks(block, spec, inputs) < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_compiled_member_of_the_family_equals_eager_after_1000_updates_float64(
    member: dict[str, Any], plan_of: Callable[..., LearnerPlan]
) -> None:
    spec = PackageSpec(plan_of(**member), SPEC, "float64")
    inputs = inputs_of(spec)
    library = BlockLibrary(prebuild(spec.plan, SPEC, "float64"))
    block = block_of(machine_code(library), inputs.rule)
    assert distance_of_blocks(block, spec, inputs) < TOLERANCE
