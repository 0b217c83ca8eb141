"""The built-in network's first parameters, beside those that PyTorch draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.config import NetworkConfig
from qfleet.common.networks import build_network
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast.initial_network import bias_bound, initial_network, weight_bound


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.parametrize("hidden_sizes", [(8,), (128, 64), (3, 5, 7)])
def test_initial_network_is_torchs_bit_for_bit(normalization, hidden_sizes):
    config = NetworkConfig(hidden_sizes=hidden_sizes, normalization=normalization)
    # Seeds on both sides of 2³², whose low half alone seeds the generator.
    for seed, n_inputs in itertools.product([0, 1, 2**31, 2**32 + 1, 2**63 - 5], [4, 7]):
        spec = EnvironmentSpec("x", (n_inputs,), "<f4", 3, None, None)
        network = build_network(config, spec, seed)

        parameters, buffers = initial_network(config, spec, seed)

        for ours, torchs in (
            (parameters, dict(network.named_parameters())),
            (buffers, dict(network.named_buffers())),
        ):
            assert list(ours) == list(torchs)
            for name, tensor in torchs.items():
                array = tensor.detach().numpy()
                assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
                assert np.array_equal(ours[name], array)


def test_bounds_are_those_of_torchs_linear_layer_for_every_width(monkeypatch):
    drawn = []
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high, **_: drawn.append(high))
    monkeypatch.setattr(nn.init, "uniform_", lambda tensor, low, high: drawn.append(high))

    for fan_in in range(1, 3000):
        nn.Linear(fan_in, 1)

        assert drawn == [weight_bound(fan_in), bias_bound(fan_in)]
        assert math.isclose(drawn[0], drawn[1], rel_tol=1e-15)
        drawn.clear()
