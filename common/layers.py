"""The layers of the built-in networks as pure functions of parameters; called by `forward.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qfleet.common.convolutions import Convolution
from qfleet.common.distributions import N_COSINES
from qfleet.common.network_plan import LinearPlan, NetworkPlan, Stack
from qfleet.common.numpy_network import NORM_EPSILON

BATCH_NORM_MOMENTUM = 0.1


class Call(NamedTuple):
    """What a forward was called with, besides its inputs."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    training: bool
    noise: Tensor | None
    """Of the noisy layers: float [n_noise] for all rows, or [B, n_noise]; None: their means."""


Layer = Callable[[Tensor, Call], Tensor]
"""From inputs to outputs, with what the whole forward was called with."""


def convolution_layers(plan: NetworkPlan) -> list[Layer]:
    """Each convolution with its normalization and ReLU, and what flattens."""
    layers: list[Layer] = []
    index = 0
    prefix = "body." if plan.is_forked else ""
    for conv in plan.convolutions:
        layers.append(_convolution(f"{prefix}{index}", conv))
        if plan.normalization == "batch":
            layers.append(_batch_norm(f"{prefix}{index + 1}"))
        elif plan.normalization == "layer":
            layers.append(_group_norm(f"{prefix}{index + 1}"))
        layers.append(_relu_in_place)
        index += 2 if plan.normalization == "none" else 3
    return [*layers, _flatten] if layers else []


def linear_layers(stack: Stack, noise_starts: Mapping[str, int], *, in_place: bool) -> list[Layer]:
    """Each linear layer with what follows it; `in_place` spares memory where outputs are large."""
    layers: list[Layer] = []
    for linear in stack:
        plain = _linear(linear.name) if linear.is_hidden else _output(linear.name)
        start = noise_starts[linear.name]
        layers.append(_noisy_linear(linear, plain, start) if linear.is_noisy else plain)
        if not linear.is_hidden:
            continue
        if linear.normalization == "batch":
            layers.append(_batch_norm(linear.norm_name))
        elif linear.normalization == "layer":
            layers.append(_layer_norm(linear.norm_name))
        layers.append(_relu_in_place if in_place else _relu)
    return layers


def _relu(x: Tensor, call: Call) -> Tensor:
    return functional.relu(x)


def _relu_in_place(x: Tensor, call: Call) -> Tensor:
    """Images are large: none is kept twice."""
    return functional.relu(x, inplace=True)


def _flatten(x: Tensor, call: Call) -> Tensor:
    return x.flatten(1)


def _linear(name: str) -> Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: Call) -> Tensor:
        return functional.linear(x, call.parameters[weight], call.parameters.get(bias))

    return run


def _output(name: str) -> Layer:
    """A last layer, in its parameters' own precision whatever the layers before are rounded to."""
    linear, weight = _linear(name), f"{name}.weight"

    def run(x: Tensor, call: Call) -> Tensor:
        if x.dtype == call.parameters[weight].dtype:
            return linear(x, call)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(call.parameters[weight].dtype), call)

    return run


def _noisy_linear(plan: LinearPlan, mean: Layer, start: int) -> Layer:
    """Y = (μ + σ ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out), f(ε) = sgn(ε)√|ε|.

    As two products, (σ(x ⊙ f(ε_in)) + σ_b) ⊙ f(ε_out) beside the mean, so that each row may have
    noise of its own.

    Source: Fortunato et al. 2018, sec. 3, eq. 9–11 (factorised noise).
    """
    weight, bias = f"{plan.name}.weight_sigma", f"{plan.name}.bias_sigma"
    n_in, end = plan.n_inputs, start + plan.n_noise

    def run(x: Tensor, call: Call) -> Tensor:
        y = mean(x, call)
        if call.noise is None:
            return y
        noise = call.noise[..., start:end]
        factors = noise.sign() * noise.abs().sqrt()
        into, out = factors[..., :n_in], factors[..., n_in:]
        spread = functional.linear(x * into, call.parameters[weight], call.parameters.get(bias))
        return y + spread * out

    return run


def _convolution(name: str, conv: Convolution) -> Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: Call) -> Tensor:
        return functional.conv2d(
            x, call.parameters[weight], call.parameters.get(bias), conv.stride, conv.padding
        )

    return run


def _layer_norm(name: str) -> Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: Call) -> Tensor:
        width = x.shape[-1:]
        return functional.layer_norm(
            x, width, call.parameters[weight], call.parameters[bias], NORM_EPSILON
        )

    return run


def _group_norm(name: str) -> Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: Call) -> Tensor:
        return functional.group_norm(
            x, 1, call.parameters[weight], call.parameters[bias], NORM_EPSILON
        )

    return run


def _batch_norm(name: str) -> Layer:
    mean, variance = f"{name}.running_mean", f"{name}.running_var"
    weight, bias, count = f"{name}.weight", f"{name}.bias", f"{name}.num_batches_tracked"

    def run(x: Tensor, call: Call) -> Tensor:
        if call.training:
            call.buffers[count].add_(1)
        return functional.batch_norm(
            x,
            call.buffers[mean],
            call.buffers[variance],
            call.parameters[weight],
            call.parameters[bias],
            call.training,
            BATCH_NORM_MOMENTUM,
            NORM_EPSILON,
        )

    return run


def embedded_fractions(name: str, taus: Tensor, call: Call) -> Tensor:
    """φ(τ) = ReLU(W·cos(π i τ) + b), i = 0…n − 1: `[B, T] -> [B, T, d]`.

    Source: Dabney et al. 2018b, eq. 4.
    """
    i = torch.arange(N_COSINES, dtype=taus.dtype, device=taus.device)
    cosines = torch.cos(taus.unsqueeze(-1) * (torch.pi * i))
    weight, bias = call.parameters[f"{name}.weight"], call.parameters[f"{name}.bias"]
    return functional.relu(functional.linear(cosines, weight, bias))


def noise_starts_of(plan: NetworkPlan) -> dict[str, int]:
    """Where each layer's numbers begin in the noise."""
    starts, n = {}, 0
    for layer in plan.linear_layers():
        starts[layer.name] = n
        n += layer.n_noise
    return starts
