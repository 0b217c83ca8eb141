"""Dueling networks: the paper's equation by hand, and the same network in all its forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.config import NetworkConfig
from qfleet.common.forward import dueling_outputs, forward_function, input_transform
from qfleet.common.networks import ForkedNetwork, build_network, to_arrays
from qfleet.common.numpy_network import NumpyMlp
from qfleet.common.q_functions import QFunctions, TorchQFunction
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast.initial_network import initial_network

torch.set_num_threads(1)

STATES = EnvironmentSpec("CartPole-v1", (4,), "<f4", 3, 475.0, 500)
FRAMES = EnvironmentSpec("CartPole-v1", (2, 36, 36), "|u1", 3, 475.0, 500, frame_stack=2)
NORMALIZATIONS = ["none", "batch", "layer"]


def config(**changes: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({"dueling": True, "hidden_sizes": (8, 6), **changes})


def trained(network: ForkedNetwork) -> ForkedNetwork:
    """With statistics and gains of its own, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.05, 4.0, generator=generator)
        elif tensor.dim() == 1:
            tensor.data.normal_(generator=generator)
    return network.eval()


def arrays_of(network: nn.Module) -> dict[str, Any]:
    return to_arrays({**dict(network.named_parameters()), **dict(network.named_buffers())})


def test_outputs_are_value_plus_advantage_less_the_mean_by_hand() -> None:
    values = torch.tensor([[10.0], [-1.0]])
    advantages = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])

    outputs = dueling_outputs(values, advantages, 3)

    assert outputs.tolist() == [[8.0, 9.0, 13.0], [-1.0, -1.0, -1.0]]


def test_outputs_of_several_numbers_per_action_are_centered_number_by_number() -> None:
    """Two actions with two numbers each, action by action."""
    outputs = dueling_outputs(torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 5.0, 3.0, 9.0]]), 2)

    assert outputs.tolist() == [[9.0, 18.0, 11.0, 22.0]]


@pytest.mark.parametrize(
    ("hidden_sizes", "names"),
    [
        ((8, 6), ["body.0", "value.0", "value.2", "advantage.0", "advantage.2"]),
        ((8,), ["value.0", "value.2", "advantage.0", "advantage.2"]),
        ((), ["value.0", "advantage.0"]),
    ],
)
def test_each_stream_has_the_last_hidden_layer_and_shares_those_before(
    hidden_sizes: tuple[int, ...], names: list[str]
) -> None:
    network = build_network(config(hidden_sizes=hidden_sizes), STATES, seed=1)

    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert list(shapes) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    assert (shapes[f"{names[-1]}.weight"][0], shapes["value.0.weight"][1]) == (
        3,
        {0: 4, 1: 4, 2: 8}[len(hidden_sizes)],
    )


def test_behind_convolutions_it_is_the_papers_network() -> None:
    """Each stream: 3,136 → 512 → value or advantages (Wang et al. 2016, sec. 4.2)."""
    spec = EnvironmentSpec("E", (4, 84, 84), "|u1", 18, None, None, frame_stack=4)

    network = build_network(config(kind="nature", hidden_sizes=(512,)), spec, seed=1)

    streams = [[str(layer) for layer in getattr(network, name)] for name in ("value", "advantage")]
    for stream, outputs in zip(streams, (1, 18), strict=True):
        assert stream == [
            "Linear(in_features=3136, out_features=512, bias=True)",
            "ReLU(inplace=True)",
            f"Linear(in_features=512, out_features={outputs}, bias=True)",
        ]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("spec", [STATES, FRAMES], ids=["states", "frames"])
def test_forward_is_its_modules_statistics_included(
    spec: EnvironmentSpec, normalization: str
) -> None:
    kind = "mlp" if spec is STATES else "small"
    network = build_network(config(kind=kind, normalization=normalization), spec, seed=1)
    forward = forward_function(network)
    parameters, buffers = arrays_as_tensors(network)
    network.train()
    for _ in range(2):
        x = torch.rand(5, *spec.observation_shape)
        features = network.body(x)
        value, advantage = network.value(features), network.advantage(features)
        expected = value + advantage - advantage.mean(dim=1, keepdim=True)
        torch.testing.assert_close(forward(parameters, buffers, x, True), expected)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=0)


def arrays_as_tensors(network: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {n: p.detach().clone() for n, p in network.named_parameters()},
        {n: b.detach().clone() for n, b in network.named_buffers()},
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("hidden_sizes", [(), (6,), (8, 6), (8, 7, 6)])
def test_numpy_twin_equals_torch(normalization: str, hidden_sizes: tuple[int, ...]) -> None:
    wanted = config(normalization=normalization, hidden_sizes=hidden_sizes)
    network = trained(build_network(wanted, STATES, seed=1))
    twin = NumpyMlp(wanted, arrays_of(network), 3)
    rng = np.random.default_rng(0)

    for batch in (1, 16, 3):
        x = rng.normal(size=(batch, 4)).astype(np.float32)
        expected = network(torch.from_numpy(x)).detach().numpy()
        q = twin.q_values(x)
        assert (q.dtype, q.shape) == (np.float32, (batch, 3))
        np.testing.assert_allclose(q, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_first_parameters_without_torch_are_torchs_bit_for_bit(normalization: str) -> None:
    network = build_network(config(normalization=normalization), STATES, seed=5)

    parameters, buffers = initial_network(config(normalization=normalization), STATES, 5)

    assert [*parameters, *buffers] == list(arrays_of(network))
    for name, array in {**parameters, **buffers}.items():
        np.testing.assert_array_equal(array, arrays_of(network)[name])


def test_frames_act_through_torch() -> None:
    wanted = config(kind="small", hidden_sizes=(6,))
    network = build_network(wanted, FRAMES, seed=1)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 36, 36), dtype=np.uint8)

    function = QFunctions(wanted, FRAMES).of(arrays_of(network))

    assert isinstance(function, TorchQFunction)
    inputs = input_transform(FRAMES)(torch.from_numpy(frames))
    np.testing.assert_allclose(
        function.q_values(frames), network(inputs).detach().numpy(), rtol=1e-6, atol=1e-7
    )
