"""What a fast form of the K-update block promises, and the proof that it computes the eager one's.

Called by `starting_block.py` and the two fast forms, the compiled package and the CUDA graph.
Neither is used before it has been compared with the eager form.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qfleet.common.types import EnvironmentSpec
from qfleet.learner.backend import LearnerPath
from qfleet.learner.fast.flat_block import flat_state
from qfleet.learner.optimizers import Hyperparameters
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import (
    Batches,
    BlockFunction,
    BlockResult,
    LearnerState,
    UpdateRule,
    copy_tensors,
    run_block,
)


class FastBlock(Protocol):
    """A `BlockFunction` for blocks of certain shapes, which never writes its inputs."""

    @property
    def path(self) -> LearnerPath:
        """What to call it."""
        ...

    def fits(self, batches: Batches) -> bool:
        """Whether it computes blocks of this shape."""
        ...

    def __call__(
        self, state: LearnerState, batches: Batches, hyper: Hyperparameters
    ) -> BlockResult:
        """See `update.run_block`; what was measured may lie in host memory.

        Raises:
            ValueError: when the batches do not fit.
        """
        ...


def random_batches(
    plan: LearnerPlan,
    environment: EnvironmentSpec,
    n_updates: int,
    dtype: torch.dtype = torch.float32,
) -> Batches:
    """`n_updates` batches of noise from a fixed seed, for tracing and for comparing; on the CPU."""
    rng = torch.Generator().manual_seed(0)
    extent = (n_updates, plan.batch_size)
    inputs = (*extent, environment.n_inputs)
    return Batches(
        torch.randn(inputs, generator=rng, dtype=dtype),
        torch.randint(0, environment.n_actions, extent, generator=rng),
        torch.randn(extent, generator=rng, dtype=dtype),
        torch.full(extent, 0.99, dtype=dtype),
        torch.randn(inputs, generator=rng, dtype=dtype),
        torch.rand(extent, generator=rng, dtype=dtype) + 0.5,
    )


def distance_from_eager(
    block: BlockFunction,
    batches: Batches,
    rule: UpdateRule,
    state: LearnerState,
    hyper: Hyperparameters,
) -> float:
    """Largest relative distance of anything that a call returns from what the eager form does."""
    eager_state = state._replace(buffers=copy_tensors(state.buffers))
    expected = run_block(rule, eager_state, batches, hyper)
    got = block(state, batches, hyper)
    pairs = zip(
        [*flat_state(expected.state), *expected[1:]],
        [*flat_state(got.state), *got[1:]],
        strict=True,
    )
    return max(_relative_distance(a, b) for a, b in pairs)


def _relative_distance(expected: Tensor, got: Tensor) -> float:
    """Largest difference over the tensor's largest magnitude; infinite where one is not finite."""
    if expected.numel() == 0:
        return 0.0
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    a, b = expected.double().cpu(), got.double().cpu()
    scale = a.abs().max().clamp(min=1e-12)
    distance = float((a - b).abs().max() / scale)
    return distance if distance == distance else float("inf")
