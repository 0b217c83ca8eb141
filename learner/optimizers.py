"""Optimizers as pure functions of parameters, gradients and state.

Pure, so that a checkpoint is a list of arrays and K updates can be traced into one graph, with the
rates as runtime values. Called by the K-update block; equal to `torch.optim` step by step (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Hyperparameters(NamedTuple):
    """Values of an update, each a scalar float tensor on the learner's device."""

    learning_rate: Tensor
    momentum: Tensor
    target_tau: Tensor
    max_grad_norm: Tensor
    huber_delta: Tensor


class OptimizerState(NamedTuple):
    """Two slots of tensors shaped like the parameters, and the number of steps taken.

    `step` is float64: 1 − β₂ᵗ loses half of float32's digits in the first steps, which moves the
    step at which radam turns its adaptive rate on.
    sgd uses `first` (momentum); adam and radam use both moments. Unused slots are empty.
    """

    first: list[Tensor]
    second: list[Tensor]
    step: Tensor


ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
_RADAM_RHO_INF = 2.0 / (1.0 - ADAM_BETAS[1]) - 1.0


def initial_state(kind: str, parameters: Sequence[Tensor]) -> OptimizerState:
    """All-zero state for `kind`."""
    zeros = [torch.zeros_like(p) for p in parameters]
    second = [] if kind == "sgd" else [torch.zeros_like(p) for p in parameters]
    step = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    return OptimizerState(zeros, second, step)


def clip_by_global_norm(
    gradients: Sequence[Tensor], max_norm: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Gradients scaled down to `max_norm` when their joint norm is above it, and that norm.

    As `torch.nn.utils.clip_grad_norm_`, with its 1e-6 in the denominator.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
    if max_norm is None:
        return list(gradients), norm
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return list(torch._foreach_mul(list(gradients), scale)), norm


def sgd(
    parameters: list[Tensor], gradients: list[Tensor], state: OptimizerState, hyper: Hyperparameters
) -> tuple[list[Tensor], OptimizerState]:
    """Step v ← μv + g; p ← p − ηv (PyTorch's momentum, no dampening)."""
    velocity = torch._foreach_add(torch._foreach_mul(state.first, hyper.momentum), gradients)
    step = torch._foreach_mul(velocity, hyper.learning_rate)
    new_state = OptimizerState(list(velocity), [], state.step + 1)
    return list(torch._foreach_sub(parameters, step)), new_state


def _moments(
    gradients: list[Tensor], state: OptimizerState
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
    beta1, beta2 = ADAM_BETAS
    step = state.step + 1
    first = torch._foreach_add(
        torch._foreach_mul(state.first, beta1), torch._foreach_mul(gradients, 1.0 - beta1)
    )
    squares = torch._foreach_mul(torch._foreach_mul(gradients, gradients), 1.0 - beta2)
    second = torch._foreach_add(torch._foreach_mul(state.second, beta2), squares)
    return list(first), list(second), step, 1.0 - beta1**step, 1.0 - beta2**step


def _like(tensors: list[Tensor], scalar: Tensor) -> Tensor:
    """A float64 scalar in the parameters' dtype, once nothing cancels any more."""
    return scalar.to(tensors[0].dtype)


def adam(
    parameters: list[Tensor], gradients: list[Tensor], state: OptimizerState, hyper: Hyperparameters
) -> tuple[list[Tensor], OptimizerState]:
    """Kingma & Ba 2015, with bias correction and ε outside the root, as `torch.optim.Adam`."""
    first, second, step, correction1, correction2 = _moments(gradients, state)
    roots = torch._foreach_div(torch._foreach_sqrt(second), _like(second, correction2.sqrt()))
    denominator = torch._foreach_add(roots, ADAM_EPSILON)
    update = torch._foreach_div(first, denominator)
    scaled = torch._foreach_mul(update, _like(first, hyper.learning_rate / correction1))
    return list(torch._foreach_sub(parameters, scaled)), OptimizerState(first, second, step)


def radam(
    parameters: list[Tensor], gradients: list[Tensor], state: OptimizerState, hyper: Hyperparameters
) -> tuple[list[Tensor], OptimizerState]:
    """Liu et al. 2020: Adam whose adaptive rate is rectified, off while its variance is unknown."""
    first, second, step, correction1, correction2 = _moments(gradients, state)
    beta2_power = ADAM_BETAS[1] ** step
    rho = _RADAM_RHO_INF - 2.0 * step * beta2_power / correction2
    numerator = (rho - 4.0) * (rho - 2.0) * _RADAM_RHO_INF
    rectifier = numerator / ((_RADAM_RHO_INF - 4.0) * (_RADAM_RHO_INF - 2.0) * rho)
    adaptive = rho > 5.0
    rectification = torch.where(adaptive, rectifier.clamp(min=0.0).sqrt(), torch.zeros_like(rho))
    plain = torch.where(adaptive, torch.zeros_like(rho), torch.ones_like(rho))
    roots = torch._foreach_add(torch._foreach_sqrt(second), ADAM_EPSILON)
    adaptive_rate = _like(first, rectification * correction2.sqrt())
    inverse = torch._foreach_mul(torch._foreach_reciprocal(roots), adaptive_rate)
    # As a list: a single scalar tensor would be read at once, which no traced graph can do.
    factors = torch._foreach_add(inverse, [_like(first, plain)] * len(inverse))
    rate = _like(first, hyper.learning_rate / correction1)
    update = torch._foreach_mul(torch._foreach_mul(first, factors), rate)
    return list(torch._foreach_sub(parameters, update)), OptimizerState(first, second, step)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "radam": radam}
"""The one place where an optimizer gets its name."""
