"""The built-in networks layer by layer, without PyTorch: names, widths and what follows what.

Read by everything that makes or runs one: `networks.py` (modules), `forward.py` (PyTorch),
`numpy_network.py` (acting without it) and the learner's first parameters.

A network without switches is one stack of layers, numbered as `nn.Sequential` numbers them. With
`dueling` the last hidden layer stands twice, once before the value and once before the advantages,
and all layers before it are shared, as in the paper, whose streams fork behind the convolutions.

Source: Wang et al. 2016 (Dueling Network Architectures), sec. 3 and 4.2.
"""

from __future__ import annotations

from typing import NamedTuple

from qfleet.common.config import NetworkConfig
from qfleet.common.convolutions import CONVOLUTIONS, Convolution


class LinearPlan(NamedTuple):
    """One linear layer; a hidden one has its normalization and a ReLU behind it."""

    name: str
    """Prefix of its parameters, e.g. `value.0`."""
    n_inputs: int
    n_outputs: int
    is_hidden: bool
    normalization: str = "none"
    has_bias: bool = True

    @property
    def norm_name(self) -> str:
        """Prefix of its normalization's parameters: the layer behind it."""
        stack, _, index = self.name.rpartition(".")
        return f"{stack}.{int(index) + 1}" if stack else f"{int(index) + 1}"


Stack = tuple[LinearPlan, ...]


class NetworkPlan(NamedTuple):
    """A whole network: convolutions, then the shared `body`, then one stack for each stream.

    Without a fork there is one stream, the whole network, and no body.
    """

    n_actions: int
    n_channels: int
    """Frames that the convolutions take."""
    convolutions: tuple[Convolution, ...]
    normalization: str
    body: Stack
    streams: dict[str, Stack]
    """By name: `value` and `advantage`, or one without a name."""

    @property
    def is_forked(self) -> bool:
        """Whether several streams follow a shared body; their layers then have its name before."""
        return len(self.streams) > 1

    def linear_layers(self) -> list[LinearPlan]:
        """All of them, in the order in which parameters are drawn."""
        return [layer for stack in (self.body, *self.streams.values()) for layer in stack]


def network_plan(
    config: NetworkConfig, observation_shape: tuple[int, ...], n_outputs: int, n_actions: int
) -> NetworkPlan:
    """The plan of `config`, which has no factory.

    Args:
        config: Of the network.
        observation_shape: O.
        n_outputs: All outputs together: a multiple of the actions, as the loss wants.
        n_actions: A.
    """
    convolutions = CONVOLUTIONS[config.kind] if config.is_convolutional else ()
    width = _n_features(convolutions, observation_shape)
    n_before = _n_modules(convolutions, config.normalization)

    def stack(name: str, index: int, width: int, sizes: tuple[int, ...], last: int | None) -> Stack:
        return _stack(config, name, index, width, sizes, last)

    hidden = config.hidden_sizes
    start = (n_actions, observation_shape[0] if convolutions else 0, convolutions)
    if not config.dueling:
        streams = {"": stack("", n_before, width, hidden, n_outputs)}
        return NetworkPlan(*start, config.normalization, (), streams)
    shared, own = hidden[:-1], hidden[-1:]
    body = stack("body", n_before, width, shared, None)
    width = shared[-1] if shared else width
    streams = {
        "value": stack("value", 0, width, own, n_outputs // n_actions),
        "advantage": stack("advantage", 0, width, own, n_outputs),
    }
    return NetworkPlan(*start, config.normalization, body, streams)


def _n_features(convolutions: tuple[Convolution, ...], shape: tuple[int, ...]) -> int:
    """Numbers that the first linear layer takes."""
    for conv in convolutions:
        shape = (conv.channels, *(conv.output_size(side) for side in shape[1:]))
    n_features = 1
    for extent in shape:
        n_features *= extent
    return n_features


def _n_modules(convolutions: tuple[Convolution, ...], normalization: str) -> int:
    """Modules before the first linear layer: each convolution's, and what flattens."""
    per_convolution = 2 if normalization == "none" else 3
    return per_convolution * len(convolutions) + 1 if convolutions else 0


def _stack(
    config: NetworkConfig,
    name: str,
    index: int,
    width: int,
    sizes: tuple[int, ...],
    last: int | None,
) -> Stack:
    """Hidden layers of `sizes` and, with `last`, one layer more for the outputs."""
    prefix = f"{name}." if name else ""
    is_normalized = config.normalization != "none"
    # Behind convolutions the course's linear layers keep their bias before a normalization.
    has_bias = not is_normalized or config.is_convolutional
    layers = []
    for units in sizes:
        layers.append(
            LinearPlan(f"{prefix}{index}", width, units, True, config.normalization, has_bias)
        )
        index, width = index + (3 if is_normalized else 2), units
    if last is not None:
        layers.append(LinearPlan(f"{prefix}{index}", width, last, False))
    return tuple(layers)
