"""Networks in PyTorch as pure functions of their parameters.

Called by the learner, whose blocks are traced and captured, and by whoever acts with PyTorch. A
built-in network is computed from its plan, which takes half the time of its module; a custom one
through `torch.func.functional_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from qfleet.common.distributions import N_TAUS_ACTING
from qfleet.common.layers import (
    Call,
    Layer,
    convolution_layers,
    embedded_fractions,
    linear_layers,
    noise_starts_of,
)
from qfleet.common.network_plan import NetworkPlan
from qfleet.common.types import EnvironmentSpec

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


def scaled_frames(
    frames: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Stacked frames as they are stored, uint8 `[B, K, H, W]`, as floats in [0, 1]."""
    return frames.to(dtype, memory_format=memory_format).div_(255.0)


def plane_inputs(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Planes as they are stored, uint8 `[B, C, H, W]`, as floats of the same values."""
    return planes.to(dtype)


def input_transform(
    spec: EnvironmentSpec,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> InputTransform:
    """What every network of this environment gets its observations through.

    `memory_format` is that of frames; convolutions go on in the format of their input.
    """
    if spec.frame_stack is not None:
        return partial(scaled_frames, dtype=dtype, memory_format=memory_format)
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


def planned_forward(plan: NetworkPlan) -> Forward:
    """The built-in network of `plan`; `Forward`'s N is its `noise_size`."""
    starts = noise_starts_of(plan)
    shared = [
        *convolution_layers(plan),
        *linear_layers(plan.body, starts, in_place=bool(plan.convolutions)),
    ]
    streams = [linear_layers(stack, starts, in_place=False) for stack in plan.streams.values()]

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
        call = Call(parameters, buffers, training, for_layers)
        x = _through(shared, inputs, call)
        if plan.embedding is None:
            return _head(plan, streams, x, call)
        taus = _taus(plan, noise, x)  # [B, T]
        n_rows, n_taus = taus.shape
        embedded = embedded_fractions(plan.embedding.name, taus, call)  # [B, T, d]
        x = (x.unsqueeze(1) * embedded).flatten(0, 1)  # [B, d] -> [B·T, d]
        if for_layers is not None and for_layers.ndim == 2:
            call = call._replace(noise=for_layers.repeat_interleave(n_taus, dim=0))
        values = _head(plan, streams, x, call).reshape(n_rows, n_taus, -1)
        return torch.cat([values, taus.unsqueeze(-1)], dim=-1).flatten(1)  # [B, T·(A + 1)]

    return forward


def _through(layers: list[Layer], x: Tensor, call: Call) -> Tensor:
    for layer in layers:
        x = layer(x, call)
    return x


def _head(plan: NetworkPlan, streams: list[list[Layer]], x: Tensor, call: Call) -> Tensor:
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
