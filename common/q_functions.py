"""From a parameter snapshot to something that answers Q-values.

Called wherever a policy acts: actors, evaluators and `load_policy`. The built-in MLP is answered
by NumPy; a custom network imports torch on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.numpy_network import NumpyMlp
from qfleet.common.types import Array, EnvironmentSpec

if TYPE_CHECKING:
    from torch import nn


class QFunction(Protocol):
    """Q-values of a fixed set of parameters, in eval mode and without gradients."""

    def q_values(self, observations: Array) -> Array:
        """`float32 [B, A]` for `float32 [B, *O]`; a row depends on its row alone."""
        ...


class TorchQFunction:
    """A torch module in eval mode."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()

    def q_values(self, observations: Array) -> Array:
        """See `QFunction`."""
        import torch

        from qfleet.common.networks import flat_inputs

        with torch.inference_mode():
            # A copy: a network may scale its input in place, and these are the caller's.
            inputs = flat_inputs(torch.from_numpy(np.array(observations)))
            return np.asarray(self._network(inputs).numpy())


def build_q_function(
    config: NetworkConfig, spec: EnvironmentSpec, arrays: Mapping[str, Array]
) -> QFunction:
    """The Q-function of a snapshot's `arrays`."""
    if config.factory is None:
        return NumpyMlp(config, arrays)
    from qfleet.common import networks

    network = networks.build_network(config, spec, seed=0)
    networks.load_arrays(network, arrays)
    return TorchQFunction(network)
