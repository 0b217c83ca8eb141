"""Q-networks in PyTorch, as modules and as pure functions of their parameters.

Called by the learner (training), by `q_functions.py` (custom networks while acting) and by the
public API. An actor on a built-in MLP uses `numpy_network.py` instead and never imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qfleet.common.config import NetworkConfig
from qfleet.common.conv_networks import ConvNetwork
from qfleet.common.convolutions import CONVOLUTIONS
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.numpy_network import NORM_EPSILON
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.common.user_code import search_working_directory
from qfleet.common.user_errors import is_from_signal, user_error

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
            noise: float [N], standard normal, for a network that takes N random numbers.

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


def input_transform(spec: EnvironmentSpec, dtype: torch.dtype = torch.float32) -> InputTransform:
    """What every network of this environment gets its observations through."""
    return partial(flat_inputs if spec.frame_stack is None else scaled_frames, dtype=dtype)


class Mlp(nn.Sequential):
    """Linear, normalization and ReLU per hidden layer, then a linear layer to the outputs.

    A linear layer before a normalization has no bias. With `normalization="batch"` and hidden
    sizes (128, 64) this is the course's network, layer by layer.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, hidden_sizes: tuple[int, ...], normalization: str
    ) -> None:
        layers: list[nn.Module] = []
        width = n_inputs
        for units in hidden_sizes:
            layers.append(nn.Linear(width, units, bias=normalization == "none"))
            if normalization == "batch":
                layers.append(nn.BatchNorm1d(units))
            elif normalization == "layer":
                layers.append(nn.LayerNorm(units))
            layers.append(nn.ReLU(inplace=True))
            width = units
        layers.append(nn.Linear(width, n_outputs))
        super().__init__(*layers)


def build_network(
    config: NetworkConfig, spec: EnvironmentSpec, seed: int, n_outputs: int | None = None
) -> nn.Module:
    """The configured network with PyTorch's default initialization drawn from `seed`.

    It has one output per action unless `n_outputs` says otherwise. Torch's global generator is left
    as it was found.

    Raises:
        ConfigError: when a factory cannot be imported or does not return an `nn.Module`.
    """
    n_outputs = spec.n_actions if n_outputs is None else n_outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.is_convolutional:
            return ConvNetwork(
                CONVOLUTIONS[config.kind],
                spec.observation_shape,
                n_outputs,
                config.hidden_sizes,
                config.normalization,
            )
        if config.factory is None:
            return Mlp(spec.n_inputs, n_outputs, config.hidden_sizes, config.normalization)
        network = load_factory(config.factory, "network.factory")(
            spec.n_inputs, n_outputs, **config.kwargs
        )
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network.factory {config.factory!r} must return a torch.nn.Module, "
            f"got {type(network).__name__}"
        )
    return network


def try_factory(config: NetworkConfig, spec: EnvironmentSpec) -> None:
    """Build the network of `config.factory` and pass two observations through it.

    Raises:
        ConfigError: with what it raised or returned, when it is no network for `spec`.
    """
    key = f"network.factory={config.factory!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, spec, seed=0)
            tried = input_transform(spec)(torch.zeros(2, *spec.observation_shape))
            answers = [network.train(mode)(tried.clone()) for mode in (True, False)]
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if is_from_signal(error):
            raise
        raise ConfigError(
            f"{key} raised {user_error(error)} when it was tried on two observations "
            f"{_batch(spec)}; it is called as function(n_inputs={spec.n_inputs}, "
            f"n_actions={spec.n_actions}, **network.kwargs)"
        ) from error
    if next(network.parameters(), None) is None:
        raise ConfigError(f"{key} has no parameters: nothing could be learned")
    for answer in answers:
        fault = _fault_of(answer, [2, spec.n_actions])
        if fault is not None:
            raise ConfigError(
                f"{key} must map observations {_batch(spec)} to Q-values "
                f"[2, {spec.n_actions}], one for each action of {spec.env_id}; {fault}"
            )


def _batch(spec: EnvironmentSpec) -> list[int]:
    """What two observations look like to a network."""
    return [2, *(spec.observation_shape if spec.frame_stack is not None else (spec.n_inputs,))]


def _fault_of(answer: object, wanted_shape: list[int]) -> str | None:
    if not isinstance(answer, Tensor):
        return f"it returned a {type(answer).__name__}"
    if list(answer.shape) != wanted_shape:
        return f"it returned {list(answer.shape)}"
    if not answer.is_floating_point() or not answer.requires_grad:
        return f"it returned {answer.dtype} values from which no gradient flows back"
    if not torch.isfinite(answer).all():
        return f"it returned values that are not finite: {answer.tolist()}"
    return None


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


def forward_function(network: nn.Module) -> Forward:
    """`network` as a pure function; the built-in MLP skips the module machinery (half the time)."""
    if isinstance(network, Mlp):
        return _mlp_forward(network)
    is_ours = isinstance(network, ConvNetwork)

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
        if not is_ours:
            # A custom network may scale its input in place, and s′ is passed twice.
            inputs = inputs.clone()
        return cast("Tensor", torch.func.functional_call(network, state, (inputs,)))

    return forward


def _refuse_noise(noise: Tensor | None) -> None:
    if noise is not None:
        raise TypeError(f"this network takes no noise, got {list(noise.shape)}")


def _mlp_forward(network: Mlp) -> Forward:
    layers = [(str(index), layer) for index, layer in enumerate(network)]

    def forward(
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        training: bool,
        noise: Tensor | None = None,
    ) -> Tensor:
        _refuse_noise(noise)
        x = inputs
        for name, layer in layers:
            if isinstance(layer, nn.ReLU):
                x = functional.relu(x)
                continue
            weight = parameters[f"{name}.weight"]
            bias = parameters.get(f"{name}.bias")
            if isinstance(layer, nn.Linear):
                x = functional.linear(x, weight, bias)
            elif isinstance(layer, nn.LayerNorm):
                x = functional.layer_norm(x, layer.normalized_shape, weight, bias, NORM_EPSILON)
            else:
                x = _batch_norm(name, buffers, x, weight, bias, training)
        return x

    return forward


def _batch_norm(
    name: str,
    buffers: Mapping[str, Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    training: bool,
) -> Tensor:
    if training:
        buffers[f"{name}.num_batches_tracked"].add_(1)
    return functional.batch_norm(
        x,
        buffers[f"{name}.running_mean"],
        buffers[f"{name}.running_var"],
        weight,
        bias,
        training,
        BATCH_NORM_MOMENTUM,
        NORM_EPSILON,
    )
