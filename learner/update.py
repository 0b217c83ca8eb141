"""One update, and a block of K of them, as pure functions of the learner's state.

Called by the backends. Everything that a block reads or writes is an argument or a result, so that
the very same functions run eagerly, are traced into a package and recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qfleet.common.forward import Forward, InputTransform, Tensors
from qfleet.learner.losses.base import Experience, Loss
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


TRAINED, CHOOSING, VALUING = range(3)
"""The forwards of one update: online at s, online at s′, target at s′."""


class Batches(NamedTuple):
    """K batches on the learner's device, each tensor `[K, B, …]`; one update's are `[B, …]`."""

    observations: Tensor
    """[K, B, *O] as they are stored, of any dtype; `UpdateRule.inputs` makes inputs of them."""
    actions: Tensor
    n_step_returns: Tensor
    bootstrap_discounts: Tensor
    next_observations: Tensor
    is_weights: Tensor
    noise: Tensor | None = None
    """float [K, 3, N], standard normal, for a network that takes noise: N numbers for each forward
    of each update."""

    def tensors(self) -> list[Tensor]:
        """Those that there are, in order."""
        return [tensor for tensor in self if tensor is not None]

    def updates(self) -> list[Batches]:
        """The K batches one by one."""
        columns = [tensor.unbind() for tensor in self.tensors()]
        return [Batches(*batch) for batch in zip(*columns, strict=True)]


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
    inputs: InputTransform
    """From observations as they are stored to what `forward` takes."""
    loss: Loss
    optimizer: str
    double_q: bool
    target_network: bool
    polyak: bool
    clip: bool
    n_layer_noise: int
    """How many of the noise's N numbers are for noisy layers; the rest are for fractions (IQN)."""
    max_target_rows: int
    """Most next observations in one forward of a target that is constant within a block, in whole
    batches and one batch at least: what bounds the memory of K·B images."""


def run_block(
    rule: UpdateRule, state: LearnerState, batches: Batches, hyper: Hyperparameters
) -> BlockResult:
    """K updates one after the other, K being the batches' leading extent.

    BatchNorm's buffers in `state` are updated in place; `eager_block` leaves them alone.
    """
    errors, losses, q_means, norms = [], [], [], []
    values = _values_of_block(rule, state, batches)
    for batch, known in zip(batches.updates(), values, strict=True):
        state, error_abs, loss, q_mean, norm = update_once(rule, state, batch, hyper, known)
        errors.append(error_abs)
        losses.append(loss)
        q_means.append(q_mean)
        norms.append(norm)
    stack = torch.stack
    return BlockResult(state, stack(errors), stack(losses), stack(q_means), stack(norms))


class Values(NamedTuple):
    """Outputs of the network that values, for one update, `[B, n_outputs]`."""

    next_outputs: Tensor
    """At s′."""
    outputs: Tensor | None
    """At s, where the loss asks for them."""


def _values_of_block(
    rule: UpdateRule, state: LearnerState, batches: Batches
) -> Sequence[Values | None]:
    """The target network's for all updates, in few forwards; None where they may change.

    A hard-synced target is constant within a block, unless each update has noise of its own.
    """
    n_updates = len(batches.actions)
    if not rule.target_network or rule.polyak or batches.noise is not None:
        return [None] * n_updates
    at_next = _target_outputs(rule, state, batches.next_observations)
    if not rule.loss.values_current:
        return [Values(outputs, None) for outputs in at_next]
    at_current = _target_outputs(rule, state, batches.observations)
    return [Values(*outputs) for outputs in zip(at_next, at_current, strict=True)]


def _target_outputs(rule: UpdateRule, state: LearnerState, observations: Tensor) -> Tensor:
    """`[K, B, *O] -> [K, B, n_outputs]`."""
    k, b = observations.shape[:2]
    n_updates = max(1, rule.max_target_rows // b)
    parts = []
    with torch.no_grad():
        for first in range(0, k, n_updates):
            rows = observations[first : first + n_updates].flatten(0, 1)
            parts.append(_outputs(rule, state.target_parameters, state.target_buffers, rows))
    outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
    return outputs.reshape(k, b, -1)


def _outputs(
    rule: UpdateRule,
    parameters: Tensors,
    buffers: Tensors,
    observations: Tensor,
    noise: Tensor | None = None,
    *,
    training: bool = False,
) -> Tensor:
    """The one place where observations `[B, *O]` as stored become a network's outputs."""
    return rule.forward(parameters, buffers, rule.inputs(observations), training, noise)


def update_once(
    rule: UpdateRule,
    state: LearnerState,
    batch: Batches,
    hyper: Hyperparameters,
    values: Values | None = None,
) -> tuple[LearnerState, Tensor, Tensor, Tensor, Tensor]:
    """One update on one batch `[B, …]`: (state, |δ| [B], loss, mean Q(s, a), gradient norm).

    `values` are the target network's where they are known already. The passes for the targets are
    in eval mode: they must neither use nor shift the batch's statistics.
    """
    with torch.no_grad():
        targets = _targets(rule, state, batch, values)
    leaves = {name: p.detach().requires_grad_() for name, p in state.parameters.items()}
    noise = _noise(batch, TRAINED)
    outputs = _outputs(rule, leaves, state.buffers, batch.observations, noise, training=True)
    items = rule.loss.items(outputs, batch.actions, targets, hyper)
    loss = (batch.is_weights * items.losses).mean()
    # A custom network may hold parameters that this forward does not use: their gradient is 0.
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    with torch.no_grad():
        # Channels-last convolutions have such gradients; the parameters' own layout never changes.
        gradients = [gradient.contiguous() for gradient in found]
        gradients, norm = clip_by_global_norm(gradients, hyper.max_grad_norm if rule.clip else None)
        old = [p.detach() for p in leaves.values()]
        new, optimizer = OPTIMIZERS[rule.optimizer](old, gradients, state.optimizer, hyper)
        state = state._replace(parameters=dict(zip(leaves, new, strict=True)), optimizer=optimizer)
        if rule.polyak:
            state = polyak(state, hyper.target_tau)
    return state, items.td_errors_abs, loss.detach(), items.q_taken.mean(), norm


def _targets(
    rule: UpdateRule, state: LearnerState, batch: Batches, values: Values | None
) -> Tensor:
    online = state.parameters, state.buffers
    valuing = (state.target_parameters, state.target_buffers) if rule.target_network else online
    if values is None:
        rows, noise = batch.next_observations, _noise(batch, VALUING)
        values = Values(_outputs(rule, *valuing, rows, noise), None)
        if rule.loss.values_current:
            outputs = _outputs(rule, *valuing, batch.observations, _layer_noise(rule, noise))
            values = values._replace(outputs=outputs)
    is_double = rule.double_q and rule.target_network
    choosing = None
    if is_double or rule.loss.chooses_apart:
        noise = _layer_noise(rule, _noise(batch, CHOOSING))
        network = online if is_double else valuing
        choosing = rule.loss.q_values(_outputs(rule, *network, batch.next_observations, noise))
    experience = Experience(
        batch.actions, batch.n_step_returns, batch.bootstrap_discounts, values.next_outputs
    )
    return rule.loss.targets(experience._replace(next_q_choosing=choosing, outputs=values.outputs))


def _noise(batch: Batches, which: int) -> Tensor | None:
    return None if batch.noise is None else batch.noise[which]


def _layer_noise(rule: UpdateRule, noise: Tensor | None) -> Tensor | None:
    """Without the numbers for fractions: Q-values are taken at fixed ones."""
    return noise[: rule.n_layer_noise] if noise is not None and rule.n_layer_noise else None


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
"""A block with its rule bound, of any shape; it never writes its inputs."""


def eager_block(rule: UpdateRule) -> BlockFunction:
    """`run_block` that leaves the buffers alone: a refused block must not leave its NaN there."""

    def block(state: LearnerState, batches: Batches, hyper: Hyperparameters) -> BlockResult:
        own = state._replace(buffers=copy_tensors(state.buffers))
        return run_block(rule, own, batches, hyper)

    return block
