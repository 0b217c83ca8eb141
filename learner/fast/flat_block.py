"""The K-update block from a flat list of tensors to another: what is traced and what is captured.

Used by the compiled package and by the CUDA graph, so that both hold `update.run_block` itself.
Inputs are the state, the batches and the hyperparameters in that order; results are the new state,
|TD errors| `[K, B]` and the losses, mean Q-values and gradient norms, each `[K]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from qfleet.common.networks import Tensors
from qfleet.learner.optimizers import Hyperparameters, OptimizerState
from qfleet.learner.update import Batches, LearnerState, UpdateRule, copy_tensors, run_block

N_MEASURED = 4
"""Results behind the state: TD errors, losses, mean Q-values, gradient norms."""


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
    n_batches, n_hyper = len(Batches._fields), len(Hyperparameters._fields)

    def block(*flat: Tensor) -> tuple[Tensor, ...]:
        taker = StateTaker(flat)
        state = taker.state(like, target=True)
        batches = Batches(*taker.listed(n_batches))
        hyper = Hyperparameters(*taker.listed(n_hyper))
        # The eager form updates running statistics in place: here they are inputs and results.
        state = state._replace(buffers=copy_tensors(state.buffers))
        new, *measured = run_block(rule, state, batches, hyper)
        if not rule.polyak:
            new = new._replace(target_parameters={}, target_buffers={})
        return (*flat_state(new), *measured)

    return block
