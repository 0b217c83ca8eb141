"""Networks in PyTorch as pure functions of their parameters.

Called by the learner, whose blocks are traced and captured, and by whoever acts with PyTorch. A
built-in network is computed from its plan, which takes half the time of its module; a custom one
through `torch.func.functional_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qfleet.common.convolutions import Convolution
from qfleet.common.distributions import N_COSINES, N_TAUS_ACTING
from qfleet.common.network_plan import LinearPlan, NetworkPlan, Stack
from qfleet.common.numpy_network import NORM_EPSILON
from qfleet.common.types import EnvironmentSpec

BATCH_NORM_MOMENTUM = 0.1

Tensors = dict[str, Tensor]
InputTransform = Callable[[Tensor], Tensor]
"""From observations as they are stored, `[B, *O]` of any dtype, to what a network takes."""


class Forward(Protocol):
    """A network as a pure function of its parameters."""

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        training: bool,
        noise: Tensor | None = None,
    ) -> Tensor:
        """`float [B, n_outputs]`.

        Args:
            parameters: The trained ones, by name.
            buffers: What training updates in place: BatchNorm's statistics.
            inputs: [B, …] from the network's `InputTransform`.
            training: Whether BatchNorm normalizes by the batch.
            noise: float [N], standard normal, for a network that takes N random numbers. None:
                the mean parameters, and fractions that are the same for all rows.

        Raises:
            TypeError: when there is noise and the network takes none.
        """
        ...


def flat_inputs(observations: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Observations as they are stored, `[B, *O]`, as an MLP takes them: `[B, n_inputs]` floats."""
    if observations.ndim != 2:
        observations = observations.reshape(observations.shape[0], -1)
    # Every update asks: what is as wanted already costs no operation.
    return observations if observations.dtype == dtype else observations.to(dtype)


def scaled_frames(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stacked frames as they are stored, uint8 `[B, K, H, W]`, as floats in [0, 1]."""
    return frames.to(dtype).div_(255.0)


def plane_inputs(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Planes as they are stored, uint8 `[B, C, H, W]`, as floats of the same values."""
    return planes.to(dtype)


def input_transform(spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> InputTransform:
    """What every network of this environment gets its observations through."""
    if spec.frame_stack is not None:
        return partial(scaled_frames, dtype=dtype)
    return partial(plane_inputs if spec.is_spatial else flat_inputs, dtype=dtype)


def forward_function(network: nn.Module) -> Forward:
    """`network` as a pure function; a built-in one carries its `plan`."""
    plan = getattr(network, "plan", None)
    return planned_forward(plan) if isinstance(plan, NetworkPlan) else _module_forward(network)


def _module_forward(network: nn.Module) -> Forward:
    def forward(
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        training: bool,
        noise: Tensor | None = None,
    ) -> Tensor:
        _refuse_noise(noise)
        network.train(training)
        state = {**parameters, **buffers}
        # A custom network may scale its input in place, and s′ is passed twice.
        return cast("Tensor", torch.func.functional_call(network, state, (inputs.clone(),)))

    return forward


def _refuse_noise(noise: Tensor | None) -> None:
    if noise is not None:
        raise TypeError(f"this network takes no noise, got {list(noise.shape)}")


class _Call(NamedTuple):
    """What a forward was called with, besides its inputs."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    training: bool
    noise: Tensor | None
    """Of the noisy layers: float [n_noise] for all rows, or [B, n_noise]; None: their means."""


_Layer = Callable[[Tensor, _Call], Tensor]


def planned_forward(plan: NetworkPlan) -> Forward:
    """The built-in network of `plan`; `Forward`'s N is its `noise_size`."""
    starts = _noise_starts(plan)
    shared = [*_convolutions(plan), *_layers(plan.body, starts, in_place=bool(plan.convolutions))]
    streams = [_layers(stack, starts, in_place=False) for stack in plan.streams.values()]

    def forward(
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        training: bool,
        noise: Tensor | None = None,
    ) -> Tensor:
        if not plan.n_noise and not plan.n_taus:
            _refuse_noise(noise)
        for_layers = noise[..., : plan.n_noise] if noise is not None and plan.n_noise else None
        call = _Call(parameters, buffers, training, for_layers)
        x = _through(shared, inputs, call)
        if plan.embedding is None:
            return _head(plan, streams, x, call)
        taus = _taus(plan, noise, x)  # [B, T]
        n_rows, n_taus = taus.shape
        embedded = _embedded(plan.embedding.name, taus, call)  # [B, T, d]
        x = (x.unsqueeze(1) * embedded).flatten(0, 1)  # [B, d] -> [B·T, d]
        if for_layers is not None and for_layers.ndim == 2:
            call = call._replace(noise=for_layers.repeat_interleave(n_taus, dim=0))
        values = _head(plan, streams, x, call).reshape(n_rows, n_taus, -1)
        return torch.cat([values, taus.unsqueeze(-1)], dim=-1).flatten(1)  # [B, T·(A + 1)]

    return forward


def _through(layers: list[_Layer], x: Tensor, call: _Call) -> Tensor:
    for layer in layers:
        x = layer(x, call)
    return x


def _head(plan: NetworkPlan, streams: list[list[_Layer]], x: Tensor, call: _Call) -> Tensor:
    outputs = [_through(layers, x, call) for layers in streams]
    if len(outputs) == 1:
        return outputs[0]
    values, advantages = outputs
    return dueling_outputs(values, advantages, plan.n_actions)


def _taus(plan: NetworkPlan, noise: Tensor | None, like: Tensor) -> Tensor:
    """Quantile fractions `[B, T]`: uniform where there is noise for them, else the middles."""
    if noise is None or noise.shape[-1] == plan.n_noise:
        middles = torch.arange(N_TAUS_ACTING, dtype=like.dtype, device=like.device) + 0.5
        return (middles / N_TAUS_ACTING).expand(len(like), -1)
    normal = noise[plan.n_noise :].reshape(len(like), plan.n_taus)
    return 0.5 * (1.0 + torch.erf(normal * 0.5**0.5))  # Φ of a normal number is uniform


def _embedded(name: str, taus: Tensor, call: _Call) -> Tensor:
    """φ(τ) = ReLU(W·cos(π i τ) + b), i = 0…n − 1: `[B, T] -> [B, T, d]`.

    Source: Dabney et al. 2018b, eq. 4.
    """
    i = torch.arange(N_COSINES, dtype=taus.dtype, device=taus.device)
    cosines = torch.cos(taus.unsqueeze(-1) * (torch.pi * i))
    weight, bias = call.parameters[f"{name}.weight"], call.parameters[f"{name}.bias"]
    return functional.relu(functional.linear(cosines, weight, bias))


def _noise_starts(plan: NetworkPlan) -> dict[str, int]:
    """Where each layer's numbers begin in the noise."""
    starts, n = {}, 0
    for layer in plan.linear_layers():
        starts[layer.name] = n
        n += layer.n_noise
    return starts


def dueling_outputs(values: Tensor, advantages: Tensor, n_actions: int) -> Tensor:
    """V(s) + A(s, a) − mean over the actions of A(s, ·), `float [B, A·n]`.

    Args:
        values: float [B, n], n outputs for the state.
        advantages: float [B, A·n], as many for each action.
        n_actions: A.

    Source: Wang et al. 2016, eq. 9.
    """
    per_action = advantages.reshape(len(values), n_actions, -1)  # [B, A·n] -> [B, A, n]
    centered = per_action - per_action.mean(dim=-2, keepdim=True)
    return (values.unsqueeze(-2) + centered).flatten(-2)


def _convolutions(plan: NetworkPlan) -> list[_Layer]:
    layers: list[_Layer] = []
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


def _layers(stack: Stack, noise_starts: Mapping[str, int], *, in_place: bool) -> list[_Layer]:
    layers: list[_Layer] = []
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


def _relu(x: Tensor, call: _Call) -> Tensor:
    return functional.relu(x)


def _relu_in_place(x: Tensor, call: _Call) -> Tensor:
    """Images are large: none is kept twice."""
    return functional.relu(x, inplace=True)


def _flatten(x: Tensor, call: _Call) -> Tensor:
    return x.flatten(1)


def _linear(name: str) -> _Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: _Call) -> Tensor:
        return functional.linear(x, call.parameters[weight], call.parameters.get(bias))

    return run


def _output(name: str) -> _Layer:
    """A last layer, in its parameters' own precision whatever the layers before are rounded to."""
    linear, weight = _linear(name), f"{name}.weight"

    def run(x: Tensor, call: _Call) -> Tensor:
        if x.dtype == call.parameters[weight].dtype:
            return linear(x, call)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(call.parameters[weight].dtype), call)

    return run


def _noisy_linear(plan: LinearPlan, mean: _Layer, start: int) -> _Layer:
    """Y = (μ + σ ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out), f(ε) = sgn(ε)√|ε|.

    As two products, (σ(x ⊙ f(ε_in)) + σ_b) ⊙ f(ε_out) beside the mean, so that each row may have
    noise of its own.

    Source: Fortunato et al. 2018, sec. 3, eq. 9–11 (factorised noise).
    """
    weight, bias = f"{plan.name}.weight_sigma", f"{plan.name}.bias_sigma"
    n_in, end = plan.n_inputs, start + plan.n_noise

    def run(x: Tensor, call: _Call) -> Tensor:
        y = mean(x, call)
        if call.noise is None:
            return y
        noise = call.noise[..., start:end]
        factors = noise.sign() * noise.abs().sqrt()
        into, out = factors[..., :n_in], factors[..., n_in:]
        spread = functional.linear(x * into, call.parameters[weight], call.parameters.get(bias))
        return y + spread * out

    return run


def _convolution(name: str, conv: Convolution) -> _Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: _Call) -> Tensor:
        return functional.conv2d(
            x, call.parameters[weight], call.parameters.get(bias), conv.stride, conv.padding
        )

    return run


def _layer_norm(name: str) -> _Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: _Call) -> Tensor:
        width = x.shape[-1:]
        return functional.layer_norm(
            x, width, call.parameters[weight], call.parameters[bias], NORM_EPSILON
        )

    return run


def _group_norm(name: str) -> _Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def run(x: Tensor, call: _Call) -> Tensor:
        return functional.group_norm(
            x, 1, call.parameters[weight], call.parameters[bias], NORM_EPSILON
        )

    return run


def _batch_norm(name: str) -> _Layer:
    mean, variance = f"{name}.running_mean", f"{name}.running_var"
    weight, bias, count = f"{name}.weight", f"{name}.bias", f"{name}.num_batches_tracked"

    def run(x: Tensor, call: _Call) -> Tensor:
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
