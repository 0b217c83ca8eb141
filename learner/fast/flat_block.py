"""The K-update block from a flat list of tensors to another: what is traced and what is captured.

Used by the compiled package and by the CUDA graph, so that both hold `update.run_block` itself.
Inputs are the state, the batches and the hyperparameters in that order; results are the new state
and what was measured, in the order of `backend.Measured`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qfleet.common.forward import Tensors
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.noise import N_FORWARDS, noise_size
from qfleet.learner.optimizers import Hyperparameters, OptimizerState
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import Batches, LearnerState, UpdateRule, eager_block

_SMALL_INTEGERS = 128
"""Random ones lie below: fit for every integer dtype."""


def flat_state(state: LearnerState) -> list[Tensor]:
    """Every tensor of a state, in the order that `StateTaker` reads."""
    groups = (state.parameters, state.buffers, state.target_parameters, state.target_buffers)
    optimizer = state.optimizer
    tensors = [tensor for group in groups for tensor in group.values()]
    return [*tensors, *optimizer.first, *optimizer.second, optimizer.step]


class StateTaker:
    """Hands out a flat list's tensors group by group, in the order of `flat_state`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._rest = iter(tensors)

    def named(self, like: Tensors) -> Tensors:
        """The next tensors under `like`'s names."""
        return {name: next(self._rest) for name in like}

    def listed(self, n: int) -> list[Tensor]:
        """The next `n` tensors."""
        return [next(self._rest) for _ in range(n)]

    def state(self, like: LearnerState, *, target: bool) -> LearnerState:
        """A state with `like`'s names; without `target` its target networks are `like`'s own."""
        return LearnerState(
            self.named(like.parameters),
            self.named(like.buffers),
            self.named(like.target_parameters) if target else like.target_parameters,
            self.named(like.target_buffers) if target else like.target_buffers,
            OptimizerState(
                self.listed(len(like.optimizer.first)),
                self.listed(len(like.optimizer.second)),
                next(self._rest),
            ),
        )


def flat_block(rule: UpdateRule, like: LearnerState) -> Callable[..., tuple[Tensor, ...]]:
    """`run_block` from flat tensors to flat tensors; a constant target is not handed back."""
    n_state, n_hyper = len(flat_state(like)), len(Hyperparameters._fields)
    run = eager_block(rule)

    def block(*flat: Tensor) -> tuple[Tensor, ...]:
        state = StateTaker(flat[:n_state]).state(like, target=True)
        batches, hyper = Batches(*flat[n_state:-n_hyper]), Hyperparameters(*flat[-n_hyper:])
        new, *measured = run(state, batches, hyper)
        if not rule.polyak:
            new = new._replace(target_parameters={}, target_buffers={})
        return (*flat_state(new), *measured)

    return block


def random_batches(
    plan: LearnerPlan, environment: EnvironmentSpec, n_updates: int, dtype: str = "float32"
) -> Batches:
    """Batches of noise from a fixed seed, for tracing and for comparing; on the CPU.

    Observations are of the dtype that is stored, all other numbers of `dtype`.
    """
    rng = torch.Generator().manual_seed(0)
    extent = (n_updates, plan.batch_size)
    stored = torch.from_numpy(np.empty(0, environment.observation_dtype)).dtype
    numbers = getattr(torch, dtype)

    def observations() -> Tensor:
        shape = (*extent, *environment.observation_shape)
        if stored.is_floating_point:
            return torch.randn(shape, generator=rng, dtype=stored)
        return torch.randint(0, _SMALL_INTEGERS, shape, generator=rng).to(stored)

    size = noise_size(plan, environment)
    noise = torch.randn((n_updates, N_FORWARDS, size), generator=rng, dtype=numbers)
    return Batches(
        observations(),
        torch.randint(0, environment.n_actions, extent, generator=rng),
        torch.randn(extent, generator=rng, dtype=numbers),
        torch.full(extent, 0.99, dtype=numbers),
        observations(),
        torch.rand(extent, generator=rng, dtype=numbers) + 0.5,
        noise if size else None,
    )
