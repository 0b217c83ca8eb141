"""Q-networks in PyTorch as modules: the built-in ones from their plan, and a user's own.

Called by the learner (training) and by `q_functions.py` (convolutions and custom networks while
acting); `forward.py` computes with them. An actor on a built-in MLP uses `numpy_network.py` instead
and never imports torch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.forward import planned_forward
from qfleet.common.network_plan import NOISY_SIGMA, NetworkPlan, Stack, network_plan
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.common.user_code import search_working_directory
from qfleet.common.user_errors import is_from_signal, user_error


class StackedNetwork(nn.Sequential):
    """A plan without a fork, layer by layer.

    With `normalization="batch"` and hidden sizes (128, 64) this is the course's first network; kind
    `convnet`, the same normalization and (512,) make its second one.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        (stack,) = plan.streams.values()
        super().__init__(*_convolutions(plan), *_layers(stack))
        self.plan = plan


class ForkedNetwork(nn.Module):
    """A plan whose streams fork behind a shared body."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolutions(plan), *_layers(plan.body))
        if plan.embedding is not None:
            self.embedding = nn.Linear(plan.embedding.n_inputs, plan.embedding.n_outputs)
        for name, stack in plan.streams.items():
            self.add_module(name, nn.Sequential(*_layers(stack)))
        self.plan = plan
        self._forward = planned_forward(plan)

    def forward(self, inputs: Tensor) -> Tensor:
        """`float [B, n_outputs]`."""
        parameters, buffers = dict(self.named_parameters()), dict(self.named_buffers())
        return self._forward(parameters, buffers, inputs, self.training)


class NoisyLinear(nn.Linear):
    """A linear layer with a σ for each of its parameters μ; as a module it computes with μ.

    Source: Fortunato et al. 2018, sec. 3.2: μ uniform within ±1/√p, σ = 0.5/√p, p inputs.
    """

    def __init__(self, n_inputs: int, n_outputs: int, bias: bool) -> None:
        super().__init__(n_inputs, n_outputs, bias=bias)
        sigma = NOISY_SIGMA / math.sqrt(n_inputs)
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, sigma))
        if bias:
            self.bias_sigma = nn.Parameter(torch.full_like(self.bias, sigma))


def _convolutions(plan: NetworkPlan) -> list[nn.Module]:
    """Each with its normalization and ReLU, and what flattens.

    A convolution before a normalization has no bias. `layer` normalizes over channels and pixels
    together (GroupNorm of one group), with a gain and an offset per channel.
    """
    modules: list[nn.Module] = []
    channels, has_bias = plan.n_channels, plan.normalization == "none"
    for conv in plan.convolutions:
        shape = (channels, conv.channels, conv.kernel, conv.stride, conv.padding)
        modules.append(nn.Conv2d(*shape, bias=has_bias))
        if plan.normalization == "batch":
            modules.append(nn.BatchNorm2d(conv.channels))
        elif plan.normalization == "layer":
            modules.append(nn.GroupNorm(1, conv.channels))
        modules.append(nn.ReLU(inplace=True))
        channels = conv.channels
    return [*modules, nn.Flatten()] if modules else []


def _layers(stack: Stack) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for linear in stack:
        kind = NoisyLinear if linear.is_noisy else nn.Linear
        modules.append(kind(linear.n_inputs, linear.n_outputs, bias=linear.has_bias))
        if not linear.is_hidden:
            continue
        if linear.normalization == "batch":
            modules.append(nn.BatchNorm1d(linear.n_outputs))
        elif linear.normalization == "layer":
            modules.append(nn.LayerNorm(linear.n_outputs))
        modules.append(nn.ReLU(inplace=True))
    return modules


def build_network(config: NetworkConfig, spec: EnvironmentSpec, seed: int) -> nn.Module:
    """The configured network with PyTorch's default initialization drawn from `seed`.

    Torch's global generator is left as it was found.

    Raises:
        ConfigError: when a factory cannot be imported or does not return an `nn.Module`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.factory is None:
            plan = network_plan(config, spec.observation_shape, spec.n_actions)
            return ForkedNetwork(plan) if plan.is_forked else StackedNetwork(plan)
        network = load_factory(config.factory, "network.factory")(
            spec.n_inputs, spec.n_actions, **config.kwargs
        )
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network.factory {config.factory!r} must return a torch.nn.Module, "
            f"got {type(network).__name__}"
        )
    return network


def load_factory(path: str, key: str) -> Callable[..., object]:
    """The callable behind `module:function`; the working directory is importable.

    Raises:
        ConfigError: naming `key`, when the form, the module or the function is wrong.
    """
    module_name, separator, function_name = path.partition(":")
    if not separator:
        raise ConfigError(f"{key} must be `module:function`, got {path!r}")
    search_working_directory()
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise ConfigError(f"{key} {path!r} cannot be imported: {user_error(error)}") from error
    if not callable(factory):
        raise ConfigError(f"{key} {path!r} must be callable, got {type(factory).__name__}")
    return cast("Callable[..., object]", factory)


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Copies as NumPy arrays, same names and order."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def load_arrays(network: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Copy parameters and buffers by name into `network`.

    Not `load_state_dict`: that wants tied parameters under each of their names and knows no
    non-persistent buffers, while arrays come from `named_parameters` and `named_buffers`.

    Raises:
        CheckpointError: when names or shapes do not match exactly, listing them.
    """
    wanted = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    differing = sorted(
        name
        for name in wanted.keys() | arrays.keys()
        if name not in wanted
        or name not in arrays
        or tuple(wanted[name].shape) != arrays[name].shape
    )
    if differing:
        raise CheckpointError(f"the parameters do not fit the network: {', '.join(differing)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
