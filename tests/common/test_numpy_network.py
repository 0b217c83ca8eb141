import subprocess
import sys

import numpy as np
import pytest
import torch

from qfleet.common.config import NetworkConfig
from qfleet.common.network_plan import network_plan
from qfleet.common.networks import StackedNetwork, to_arrays
from qfleet.common.numpy_network import NumpyMlp


def random_network(hidden_sizes: tuple[int, ...], normalization: str, seed: int) -> StackedNetwork:
    torch.manual_seed(seed)
    config = NetworkConfig(hidden_sizes=hidden_sizes, normalization=normalization)
    network = StackedNetwork(network_plan(config, (4,), 3))
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.05, 4.0)
        elif tensor.dim() == 1:
            tensor.data.normal_()
    return network.eval()


def twin(network: StackedNetwork, hidden_sizes: tuple[int, ...], normalization: str) -> NumpyMlp:
    arrays = to_arrays({**dict(network.named_parameters()), **dict(network.named_buffers())})
    config = NetworkConfig(hidden_sizes=hidden_sizes, normalization=normalization)
    return NumpyMlp(config, arrays, 3)


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.parametrize("hidden_sizes", [(), (16,), (128, 64), (8, 8, 8)])
def test_numpy_mlp_equals_torch_in_eval_mode(normalization, hidden_sizes):
    network = random_network(hidden_sizes, normalization, seed=1)
    numpy_network = twin(network, hidden_sizes, normalization)
    rng = np.random.default_rng(0)

    for batch in (1, 16, 3, 16):
        observations = rng.normal(size=(batch, 4)).astype(np.float32) * 3
        q = numpy_network.q_values(observations)

        expected = network(torch.from_numpy(observations)).detach().numpy()
        assert q.dtype == np.float32
        np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64])
@pytest.mark.parametrize("hidden_sizes", [(), (8,)])
def test_numpy_mlp_other_dtypes_and_shapes_are_flat_float32(dtype, hidden_sizes):
    network = random_network(hidden_sizes, "none", seed=2)
    observations = np.arange(12).reshape(3, 2, 2).astype(dtype)

    q = twin(network, hidden_sizes, "none").q_values(observations)

    assert q.dtype == np.float32
    expected = network(torch.from_numpy(observations.reshape(3, 4).astype(np.float32)))
    np.testing.assert_allclose(q, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_numpy_mlp_answers_are_fresh_and_observations_are_left_alone(normalization):
    numpy_network = twin(random_network((8,), normalization, 3), (8,), normalization)
    observations = np.ones((2, 4), np.float32)

    first = numpy_network.q_values(observations)
    kept = first.copy()
    second = numpy_network.q_values(-observations)

    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    assert (observations == 1.0).all()


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_numpy_mlp_keeps_no_view_of_its_arrays(normalization):
    network = random_network((8,), normalization, 4)
    arrays = to_arrays({**dict(network.named_parameters()), **dict(network.named_buffers())})
    config = NetworkConfig(hidden_sizes=(8,), normalization=normalization)
    numpy_network = NumpyMlp(config, arrays, 3)
    observations = np.ones((2, 4), np.float32)
    before = numpy_network.q_values(observations)

    for array in arrays.values():
        array.fill(0)

    np.testing.assert_array_equal(numpy_network.q_values(observations), before)


def test_numpy_mlp_of_another_layout_raises():
    network = random_network((8,), "none", 5)

    with pytest.raises(KeyError):
        twin(network, (8, 8), "none")


def test_numpy_network_and_q_functions_do_not_import_torch():
    code = "import sys, qfleet.common.q_functions; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
