"""One update, and a block of K of them, as pure functions of the learner's state.

Called by `learner.py`. Everything that a block reads or writes is an argument or a result, so that
the very same functions run eagerly today and can be traced into one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qfleet.common.networks import Forward, Tensors
from qfleet.learner.losses import LOSSES, bootstrap_values, td_errors, td_targets
from qfleet.learner.optimizers import (
    OPTIMIZERS,
    Hyperparameters,
    OptimizerState,
    clip_by_global_norm,
)


class LearnerState(NamedTuple):
    """Networks and optimizer; `target_*` are empty without a target network.

    `buffers` are BatchNorm's running statistics, which a training forward updates in place.
    """

    parameters: Tensors
    buffers: Tensors
    target_parameters: Tensors
    target_buffers: Tensors
    optimizer: OptimizerState


class Batches(NamedTuple):
    """K batches on the learner's device, each tensor `[K, B, …]`; inputs are already scaled."""

    observations: Tensor
    actions: Tensor
    n_step_returns: Tensor
    bootstrap_discounts: Tensor
    next_observations: Tensor
    is_weights: Tensor


class BlockResult(NamedTuple):
    """What a block leaves: state, |TD errors| `[K, B]` and per-update scalars `[K]`."""

    state: LearnerState
    td_errors_abs: Tensor
    losses: Tensor
    q_means: Tensor
    grad_norms: Tensor


@dataclass(frozen=True)
class UpdateRule:
    """What of the configuration decides the computation's shape (not its values)."""

    forward: Forward
    loss: str
    optimizer: str
    double_q: bool
    target_network: bool
    polyak: bool
    clip: bool


def run_block(
    rule: UpdateRule, state: LearnerState, batches: Batches, hyper: Hyperparameters
) -> BlockResult:
    """K updates one after the other, K being the batches' leading extent."""
    errors, losses, q_means, norms = [], [], [], []
    q_next_targets = _target_values_of_block(rule, state, batches)
    for k in range(batches.actions.shape[0]):
        q_next_target = None if q_next_targets is None else q_next_targets[k]
        batch = Batches(*(column[k] for column in batches))
        state, error_abs, loss, q_mean, norm = update_once(rule, state, batch, hyper, q_next_target)
        errors.append(error_abs)
        losses.append(loss)
        q_means.append(q_mean)
        norms.append(norm)
    stack = torch.stack
    return BlockResult(state, stack(errors), stack(losses), stack(q_means), stack(norms))


def _target_values_of_block(
    rule: UpdateRule, state: LearnerState, batches: Batches
) -> Tensor | None:
    """Q_target(s′) `[K, B, A]` in one forward: a hard-synced target is constant within a block."""
    if not rule.target_network or rule.polyak:
        return None
    k, b = batches.actions.shape
    with torch.no_grad():
        flat = batches.next_observations.reshape(k * b, -1)
        q = rule.forward(state.target_parameters, state.target_buffers, flat, False)
    return q.reshape(k, b, -1)


def update_once(
    rule: UpdateRule,
    state: LearnerState,
    batch: Batches,
    hyper: Hyperparameters,
    q_next_target: Tensor | None = None,
) -> tuple[LearnerState, Tensor, Tensor, Tensor, Tensor]:
    """One update on one batch `[B, …]`: (state, |δ| [B], loss, mean Q(s, a), gradient norm).

    The passes over s′ are in eval mode: they must neither use nor shift the batch's statistics.
    """
    with torch.no_grad():
        next_values = _next_values(rule, state, batch, q_next_target)
        targets = td_targets(batch.n_step_returns, batch.bootstrap_discounts, next_values)
    leaves = {name: p.detach().requires_grad_() for name, p in state.parameters.items()}
    q = rule.forward(leaves, state.buffers, batch.observations, True)
    error = td_errors(q, batch.actions, targets)
    loss = (batch.is_weights * LOSSES[rule.loss](error, hyper.huber_delta)).mean()
    # A custom network may hold parameters that this forward does not use: their gradient is 0.
    gradients = list(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
    with torch.no_grad():
        gradients, norm = clip_by_global_norm(gradients, hyper.max_grad_norm if rule.clip else None)
        old = [p.detach() for p in leaves.values()]
        new, optimizer = OPTIMIZERS[rule.optimizer](old, gradients, state.optimizer, hyper)
        state = state._replace(parameters=dict(zip(leaves, new, strict=True)), optimizer=optimizer)
        if rule.polyak:
            state = polyak(state, hyper.target_tau)
        error = error.detach()
        q_mean = (targets - error).mean()
    return state, error.abs(), loss.detach(), q_mean, norm


def _next_values(
    rule: UpdateRule, state: LearnerState, batch: Batches, q_next_target: Tensor | None
) -> Tensor:
    def online() -> Tensor:
        return rule.forward(state.parameters, state.buffers, batch.next_observations, False)

    if not rule.target_network:
        return bootstrap_values(online(), None)
    if q_next_target is None:
        q_next_target = rule.forward(
            state.target_parameters, state.target_buffers, batch.next_observations, False
        )
    return bootstrap_values(q_next_target, online() if rule.double_q else None)


def polyak(state: LearnerState, tau: Tensor) -> LearnerState:
    """Target += τ(online − target) for parameters and float buffers; counters are copied."""

    def mix(target: Tensors, online: Tensors) -> Tensors:
        return {
            name: torch.lerp(old, online[name], tau)
            if old.is_floating_point()
            else online[name].clone()
            for name, old in target.items()
        }

    return state._replace(
        target_parameters=mix(state.target_parameters, state.parameters),
        target_buffers=mix(state.target_buffers, state.buffers),
    )


def copy_tensors(tensors: Tensors) -> Tensors:
    """A deep copy, same names and order."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


BlockFunction = Callable[[LearnerState, Batches, Hyperparameters], BlockResult]
"""A block with its rule bound: eager now, one compiled graph later."""
