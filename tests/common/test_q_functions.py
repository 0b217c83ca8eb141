import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CheckpointError
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.numpy_network import NumpyMlp
from qfleet.common.q_functions import TorchQFunction, build_q_function
from qfleet.common.types import EnvironmentSpec

SPEC = EnvironmentSpec("Grid-v0", (2, 2), "<f4", 3, None, None)
CUSTOM = NetworkConfig(factory="q_functions_under_test:make")
IN_PLACE = NetworkConfig(factory="q_functions_under_test:make_in_place")
BUILT_IN = NetworkConfig(hidden_sizes=(8,), normalization="batch")


@pytest.fixture(autouse=True)
def factory(monkeypatch):
    module = types.ModuleType("q_functions_under_test")
    module.make = lambda n_inputs, n_actions: nn.Sequential(
        nn.Linear(n_inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, n_actions)
    )
    module.make_in_place = InPlace
    monkeypatch.setitem(sys.modules, "q_functions_under_test", module)


class InPlace(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.div_(255.0))


def network_and_arrays(config: NetworkConfig) -> tuple[nn.Module, dict[str, np.ndarray]]:
    network = build_network(config, SPEC, seed=9)
    network.train()
    network(torch.randn(32, 4) * 2 + 1)  # moves the running statistics off their start
    network.eval()
    return network, to_arrays({**dict(network.named_parameters()), **dict(network.named_buffers())})


@pytest.mark.parametrize(("config", "kind"), [(BUILT_IN, NumpyMlp), (CUSTOM, TorchQFunction)])
def test_build_q_function_answers_as_the_network_in_eval_mode(config, kind):
    network, arrays = network_and_arrays(config)
    observations = np.random.default_rng(0).normal(size=(5, 2, 2)).astype(np.float32)
    observations.flags.writeable = False

    q_function = build_q_function(config, SPEC, arrays)
    q = q_function.q_values(observations)

    expected = network(torch.from_numpy(observations.copy()).flatten(1)).detach().numpy()
    assert isinstance(q_function, kind)
    assert (q.dtype, q.shape) == (np.float32, (5, 3))
    np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q_function.q_values(observations[2:3]), q[2:3], rtol=1e-5, atol=1e-6)


def test_torch_q_function_network_that_scales_in_place_leaves_the_observations():
    _, arrays = network_and_arrays(IN_PLACE)
    observations = np.full((2, 2, 2), 255.0, np.float32)

    build_q_function(IN_PLACE, SPEC, arrays).q_values(observations)

    assert (observations == 255.0).all()


def test_torch_q_function_casts_to_float32():
    _, arrays = network_and_arrays(CUSTOM)
    q_function = build_q_function(CUSTOM, SPEC, arrays)
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)

    np.testing.assert_array_equal(
        q_function.q_values(pixels), q_function.q_values(pixels.astype(np.float64))
    )


def test_build_q_function_foreign_arrays_raise_checkpoint_error():
    _, arrays = network_and_arrays(CUSTOM)
    arrays.pop("4.bias")

    with pytest.raises(CheckpointError, match=r"4\.bias"):
        build_q_function(CUSTOM, SPEC, arrays)
