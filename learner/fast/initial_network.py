"""The built-in network's first parameters without torch: the very bits that PyTorch would draw.

Called by `package_backend.py`. PyTorch draws a linear layer's weight and bias uniformly within
±1/√fan_in, from the Mersenne Twister that `torch.manual_seed` seeds.
"""

from __future__ import annotations

import math

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.network_plan import NOISY_SIGMA, network_plan
from qfleet.common.types import Array, EnvironmentSpec

_DIGITS = 24
"""Random bits in a float32 between 0 and 1."""
_GAIN = math.sqrt(2.0 / (1.0 + math.sqrt(5.0) ** 2))
"""`nn.init.calculate_gain` of the slope √5 that `nn.Linear` asks for; with √3 it is all but 1."""


def initial_network(
    config: NetworkConfig, spec: EnvironmentSpec, seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parameters and buffers of `networks.build_network(config, spec, seed)`, in their order.

    Equal to them bit for bit. Only for a network without a factory.
    """
    random = np.random.RandomState(seed & 0xFFFFFFFF)  # as torch: the low half seeds the twister
    parameters: dict[str, Array] = {}
    buffers: dict[str, Array] = {}
    plan = network_plan(config, spec.observation_shape, spec.n_actions)
    for layer in plan.linear_layers():
        fan_in, units = layer.n_inputs, layer.n_outputs
        shape = (units, fan_in)
        parameters[f"{layer.name}.weight"] = _uniform(random, shape, weight_bound(fan_in))
        if layer.has_bias:
            parameters[f"{layer.name}.bias"] = _uniform(random, (units,), bias_bound(fan_in))
        if layer.is_noisy:
            sigma = NOISY_SIGMA / math.sqrt(fan_in)
            parameters[f"{layer.name}.weight_sigma"] = np.full(shape, sigma, np.float32)
            if layer.has_bias:
                parameters[f"{layer.name}.bias_sigma"] = np.full(units, sigma, np.float32)
        if layer.normalization == "none":
            continue
        norm = layer.norm_name
        parameters[f"{norm}.weight"] = np.ones(units, np.float32)
        parameters[f"{norm}.bias"] = np.zeros(units, np.float32)
        if layer.normalization == "batch":
            buffers[f"{norm}.running_mean"] = np.zeros(units, np.float32)
            buffers[f"{norm}.running_var"] = np.ones(units, np.float32)
            buffers[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)
    return parameters, buffers


def weight_bound(fan_in: int) -> float:
    """Of a linear layer's weights: `nn.init.kaiming_uniform_`, with its roundings."""
    return math.sqrt(3.0) * (_GAIN / math.sqrt(fan_in))


def bias_bound(fan_in: int) -> float:
    """Of a linear layer's biases."""
    return 1.0 / math.sqrt(fan_in)


def _uniform(random: np.random.RandomState, shape: tuple[int, ...], bound: float) -> Array:
    """Between ±`bound`, as `nn.init.uniform_` draws it."""
    words = random.randint(0, 2**32, size=shape, dtype=np.uint32)
    unit = (words & np.uint32(2**_DIGITS - 1)).astype(np.float64) * 2.0**-_DIGITS
    low, high = np.float32(-bound), np.float32(bound)
    return np.asarray(unit * float(np.float32(high - low)) + float(low), np.float32)
