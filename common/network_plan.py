"""The built-in networks layer by layer, without PyTorch: names, widths and what follows what.

Read by everything that makes or runs one: `networks.py` (modules), `forward.py` (PyTorch),
`numpy_network.py` (acting without it) and the learner's first parameters.

A network without switches is one stack of layers, numbered as `nn.Sequential` numbers them. With
`dueling` the last hidden layer stands twice, once before the value and once before the advantages,
and all layers before it are shared, as in the paper, whose streams fork behind the convolutions.
IQN multiplies what goes into the last hidden layer by an embedding of the quantile fraction.

Source: Wang et al. 2016 (Dueling Network Architectures), sec. 3 and 4.2; Dabney et al. 2018b (IQN),
sec. 3.1 and eq. 4; Fortunato et al. 2018 (Noisy Networks), sec. 3.
"""

from __future__ import annotations

from typing import NamedTuple

from qfleet.common.config import NetworkConfig
from qfleet.common.convolutions import CONVOLUTIONS, Convolution
from qfleet.common.distributions import N_COSINES, outputs_per_action
from qfleet.common.types import EnvironmentSpec

NOISY_SIGMA = 0.5
"""σ₀ of factorised noise."""


class LinearPlan(NamedTuple):
    """One linear layer; a hidden one has its normalization and a ReLU behind it."""

    name: str
    """Prefix of its parameters, e.g. `value.0`."""
    n_inputs: int
    n_outputs: int
    is_hidden: bool
    normalization: str = "none"
    has_bias: bool = True
    is_noisy: bool = False
    """Whether it has σ beside each μ, under `weight_sigma` and `bias_sigma`."""

    @property
    def norm_name(self) -> str:
        """Prefix of its normalization's parameters: the layer behind it."""
        stack, _, index = self.name.rpartition(".")
        return f"{stack}.{int(index) + 1}" if stack else f"{int(index) + 1}"

    @property
    def n_noise(self) -> int:
        """Random numbers of its factorised noise: one per input and one per output."""
        return self.n_inputs + self.n_outputs if self.is_noisy else 0


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
    embedding: LinearPlan | None
    """IQN's, of the cosines of a quantile fraction; a ReLU follows."""
    streams: dict[str, Stack]
    """By name: `value` and `advantage`, or one, with a name where there is a body."""
    n_taus: int
    """Quantile fractions for which IQN is drawn while it trains; 0 elsewhere."""

    @property
    def is_forked(self) -> bool:
        """Whether a body with a name stands before the streams."""
        return "" not in self.streams

    @property
    def n_noise(self) -> int:
        """Random numbers of its noisy layers together, in the order of `linear_layers`."""
        return sum(layer.n_noise for layer in self.linear_layers())

    def noise_size(self, batch_size: int) -> int:
        """Random numbers of one forward of a batch: its noisy layers', then fractions' of IQN.

        Without the latter, IQN takes the middles of K equal parts of [0, 1].
        """
        return self.n_noise + batch_size * self.n_taus

    def linear_layers(self) -> list[LinearPlan]:
        """All of them, in the order in which parameters are drawn."""
        embedding = () if self.embedding is None else (self.embedding,)
        stacks = (self.body, embedding, *self.streams.values())
        return [layer for stack in stacks for layer in stack]


def network_plan(
    config: NetworkConfig, observation_shape: tuple[int, ...], n_actions: int
) -> NetworkPlan:
    """The plan of `config`, which has no factory, for observations O and A actions."""
    convolutions = CONVOLUTIONS[config.kind] if config.is_convolutional else ()
    width = _n_features(convolutions, observation_shape)
    index = _n_modules(convolutions, config.normalization)
    hidden, is_implicit = config.hidden_sizes, config.distribution == "iqn"
    per_action = outputs_per_action(config)
    all_outputs = n_actions * per_action
    body: Stack = ()
    embedding = None
    if not config.dueling and not is_implicit:
        streams = {"": _stack(config, "", index, width, hidden, all_outputs)}
    else:
        shared, own = hidden[:-1], hidden[-1:]
        body = _stack(config, "body", index, width, shared, None)
        width = shared[-1] if shared else width
        widths = {"value": per_action} if config.dueling else {}
        widths |= {"advantage" if config.dueling else "head": all_outputs}
        if is_implicit:
            embedding = LinearPlan("embedding", N_COSINES, width, is_hidden=False)
        streams = {
            name: _stack(config, name, 0, width, own, outputs) for name, outputs in widths.items()
        }
    return NetworkPlan(
        n_actions,
        observation_shape[0] if convolutions else 0,
        convolutions,
        config.normalization,
        body,
        embedding,
        streams,
        config.n_atoms if is_implicit else 0,
    )


def n_layer_noise(config: NetworkConfig, spec: EnvironmentSpec) -> int:
    """Random numbers per row that a network acts with; 0 without noisy layers."""
    if not config.noisy:
        return 0
    return network_plan(config, spec.observation_shape, spec.n_actions).n_noise


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
    normalization, is_noisy = config.normalization, config.noisy
    # Behind convolutions the course's linear layers keep their bias before a normalization.
    has_bias = normalization == "none" or config.is_convolutional
    layers = []
    for units in sizes:
        layers.append(
            LinearPlan(f"{prefix}{index}", width, units, True, normalization, has_bias, is_noisy)
        )
        index, width = index + (2 if normalization == "none" else 3), units
    if last is not None:
        layers.append(LinearPlan(f"{prefix}{index}", width, last, False, is_noisy=is_noisy))
    return tuple(layers)
