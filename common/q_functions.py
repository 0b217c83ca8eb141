"""From a parameter snapshot to something that answers Q-values.

Called wherever a policy acts: actors, evaluators and `load_policy`. The built-in MLP is answered
by NumPy; convolutions and custom networks import torch on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.distributions import q_values
from qfleet.common.numpy_network import NumpyMlp
from qfleet.common.types import Array, EnvironmentSpec


class QFunction(Protocol):
    """Q-values of a fixed set of parameters, in eval mode and without gradients."""

    def q_values(self, observations: Array) -> Array:
        """`float32 [B, A]` for observations `[B, *O]`; a row depends on its row alone."""
        ...


class NetworkFunction(Protocol):
    """A `QFunction` that shows what an actor needs of its network."""

    def q_values(self, observations: Array, noise: Array | None = None) -> Array:
        """See `QFunction`.

        `noise` is float32 [B, n_noise], standard normal, for a network with noisy layers; without
        it those compute with their means.
        """
        ...

    def outputs(self, observations: Array) -> Array:
        """What the network's last layer answers, `float32 [B, n_outputs]`, without noise."""
        ...


class TorchQFunctions:
    """Q-functions of one network in torch, which is built once for all of them.

    Each keeps its snapshot's arrays; they are copied into the module when another one was asked
    last. Owned by one thread.
    """

    def __init__(self, config: NetworkConfig, spec: EnvironmentSpec) -> None:
        from qfleet.common import forward, networks

        self._config, self._n_actions = config, spec.n_actions
        self._network = networks.build_network(config, spec, seed=0).eval()
        self._forward = forward.forward_function(self._network)
        self._tensors = dict(self._network.named_parameters()), dict(self._network.named_buffers())
        self._transform = forward.input_transform(spec)
        self._loaded: object = None

    def q_values(
        self, key: object, arrays: Mapping[str, Array], observations: Array, noise: Array | None
    ) -> Array:
        """`float32 [B, A]` with the parameters `arrays`, whose `key` tells them from others."""
        outputs = self.outputs(key, arrays, observations, noise)
        return q_values(self._config, outputs, self._n_actions)

    def outputs(
        self, key: object, arrays: Mapping[str, Array], observations: Array, noise: Array | None
    ) -> Array:
        """`float32 [B, n_outputs]`."""
        import torch

        with torch.inference_mode():
            self.load(key, arrays)
            # A copy: a network may scale its input in place, and these are the caller's.
            inputs = self._transform(torch.from_numpy(np.array(observations)))
            drawn = None if noise is None else torch.from_numpy(noise)
            return np.asarray(self._forward(*self._tensors, inputs, False, drawn).numpy())

    def load(self, key: object, arrays: Mapping[str, Array]) -> None:
        """Have these parameters in the module.

        Raises:
            CheckpointError: when they are not this network's.
        """
        from qfleet.common import networks

        if self._loaded is not key:
            networks.load_arrays(self._network, arrays)
            self._loaded = key


class TorchQFunction:
    """One snapshot's parameters in a module that is shared with other snapshots'."""

    def __init__(self, functions: TorchQFunctions, arrays: Mapping[str, Array]) -> None:
        self._functions, self._arrays = functions, arrays
        functions.load(self, arrays)

    def q_values(self, observations: Array, noise: Array | None = None) -> Array:
        """See `NetworkFunction`."""
        return self._functions.q_values(self, self._arrays, observations, noise)

    def outputs(self, observations: Array) -> Array:
        """See `NetworkFunction`."""
        return self._functions.outputs(self, self._arrays, observations, None)


class QFunctions:
    """Makes Q-functions of snapshots of one network; kept by whoever gets many of them."""

    def __init__(self, config: NetworkConfig, spec: EnvironmentSpec) -> None:
        self._config, self._spec = config, spec
        self._torch: TorchQFunctions | None = None

    def of(self, arrays: Mapping[str, Array]) -> NetworkFunction:
        """The Q-function of a snapshot's `arrays`."""
        if self._config.factory is None and not self._config.is_convolutional:
            return NumpyMlp(self._config, arrays, self._spec.n_actions)
        if self._torch is None:
            self._torch = TorchQFunctions(self._config, self._spec)
        return TorchQFunction(self._torch, arrays)


def build_q_function(
    config: NetworkConfig, spec: EnvironmentSpec, arrays: Mapping[str, Array]
) -> NetworkFunction:
    """The Q-function of a single snapshot's `arrays`."""
    return QFunctions(config, spec).of(arrays)
