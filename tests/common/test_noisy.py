"""Noisy layers and IQN's fractions: by the papers' formulas, and the same in all forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.common.config import NetworkConfig
from qfleet.common.distributions import q_values
from qfleet.common.forward import forward_function
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.numpy_network import NumpyMlp
from qfleet.common.q_functions import QFunctions
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast.initial_network import initial_network

torch.set_num_threads(1)

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 3, 475.0, 500)
FRAMES = EnvironmentSpec("CartPole-v1", (2, 36, 36), "|u1", 3, 475.0, 500, frame_stack=2)


def config(**changes: Any) -> NetworkConfig:
    base = {"hidden_sizes": (8, 6), "value_min": -1, "value_max": 1}
    return NetworkConfig.model_validate({**base, **changes})


def network_of(wanted: NetworkConfig, spec: EnvironmentSpec = SPEC) -> torch.nn.Module:
    network = build_network(wanted, spec, seed=1)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.05, 4.0, generator=generator)
        elif tensor.dim() == 1 or "sigma" in name:
            tensor.data.normal_(generator=generator)
    return network.eval()


def tensors(network: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(network.named_parameters()), dict(network.named_buffers())


def arrays_of(network: torch.nn.Module) -> dict[str, Any]:
    parameters, buffers = tensors(network)
    return to_arrays({**parameters, **buffers})


def f(x: torch.Tensor) -> torch.Tensor:
    return x.sign() * x.abs().sqrt()


def test_noisy_layers_are_the_papers_matrices() -> None:
    """Fortunato et al. 2018, eq. 9–11: W = μ + σ ⊙ f(ε_out)f(ε_in)ᵀ, written out."""
    network = network_of(config(noisy=True))
    parameters, buffers = tensors(network)
    noise = torch.randn(network.plan.n_noise, generator=torch.Generator().manual_seed(5))
    assert len(noise) == (4 + 8) + (8 + 6) + (6 + 3)
    x = inputs = torch.randn(5, 4)

    start = 0
    for layer in network.plan.linear_layers():
        into = f(noise[start : start + layer.n_inputs])
        out = f(noise[start + layer.n_inputs : start + layer.n_noise])
        start += layer.n_noise
        mu, sigma = (parameters[f"{layer.name}.weight{part}"] for part in ("", "_sigma"))
        mu_b, sigma_b = (parameters[f"{layer.name}.bias{part}"] for part in ("", "_sigma"))
        x = x @ (mu + sigma * torch.outer(out, into)).T + mu_b + sigma_b * out
        x = torch.relu(x) if layer.is_hidden else x

    torch.testing.assert_close(
        forward_function(network)(parameters, buffers, inputs, False, noise), x
    )


def test_noisy_layers_begin_as_in_the_paper() -> None:
    """μ within ±1/√p, σ = 0.5/√p."""
    network = build_network(config(noisy=True), SPEC, seed=1)
    weight, sigma = network[0].weight, network[0].weight_sigma
    assert float(weight.detach().abs().max()) <= 0.5
    assert sigma.unique().tolist() == [0.25]
    assert network[0].bias_sigma.unique().tolist() == [0.25]


def test_network_without_noisy_layers_refuses_noise() -> None:
    network = network_of(config())
    with pytest.raises(TypeError, match=r"takes no noise, got \[3\]"):
        forward_function(network)(*tensors(network), torch.zeros(2, 4), False, torch.zeros(3))


def test_every_head_with_and_without_noise_is_the_same_in_numpy() -> None:
    rng = np.random.default_rng(0)
    for noisy, dueling, distribution, normalization in itertools.product(
        (False, True), (False, True), ("none", "c51", "qr", "iqn"), ("none", "batch", "layer")
    ):
        wanted = config(
            noisy=noisy, dueling=dueling, distribution=distribution, normalization=normalization
        )
        network = network_of(wanted)
        twin, forward = NumpyMlp(wanted, arrays_of(network), 3), forward_function(network)
        x = rng.normal(size=(5, 4)).astype(np.float32)
        noise = rng.normal(size=(5, network.plan.n_noise)).astype(np.float32)
        for drawn in (None, noise) if noisy else (None,):
            given = None if drawn is None else torch.from_numpy(drawn)
            outputs = forward(*tensors(network), torch.from_numpy(x), False, given).detach()
            expected = q_values(wanted, outputs.numpy(), 3)
            got = twin.q_values(x, drawn)
            case = (noisy, dueling, distribution, normalization)
            assert got.shape == (5, 3), case
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5, err_msg=str(case))
        # A row depends on its row and its noise alone.
        alone = twin.q_values(x[2:3], noise[2:3] if noisy else None)
        np.testing.assert_allclose(got[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("distribution", ["none", "iqn"])
def test_first_parameters_without_torch_are_torchs_bit_for_bit(
    noisy: bool, distribution: str
) -> None:
    wanted = config(noisy=noisy, distribution=distribution, normalization="layer")
    expected = arrays_of(build_network(wanted, SPEC, seed=7))

    parameters, buffers = initial_network(wanted, SPEC, 7)

    assert [*parameters, *buffers] == list(expected)
    for name, array in {**parameters, **buffers}.items():
        np.testing.assert_array_equal(array, expected[name])


def test_frames_act_with_noise_through_torch() -> None:
    wanted = config(kind="small", hidden_sizes=(6,), noisy=True, distribution="iqn", dueling=True)
    network = network_of(wanted, FRAMES)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 36, 36), dtype=np.uint8)
    noise = np.random.default_rng(1).normal(size=(3, network.plan.n_noise)).astype(np.float32)

    function = QFunctions(wanted, FRAMES).of(arrays_of(network))

    quiet, loud = function.q_values(frames), function.q_values(frames, noise)
    assert quiet.shape == loud.shape == (3, 3)
    assert not np.allclose(quiet, loud)
    np.testing.assert_allclose(
        function.q_values(frames[1:2], noise[1:2]), loud[1:2], rtol=1e-4, atol=1e-5
    )


def test_iqn_is_the_papers_product_of_features_and_embedding() -> None:
    """Dabney et al. 2018b, eq. 4, for one state and the fractions that the noise gives."""
    network = network_of(config(distribution="iqn", atoms=2))
    parameters, buffers = tensors(network)
    normal = torch.tensor([0.0, 1.6448536])  # Φ: ½ and 0.95
    x = torch.randn(1, 4)

    outputs = forward_function(network)(parameters, buffers, x, False, normal).reshape(2, 4)

    torch.testing.assert_close(outputs[:, 3], torch.tensor([0.5, 0.95]))
    features = network.body(x)[0]
    for row, tau in zip(outputs, (0.5, 0.95), strict=True):
        cosines = torch.cos(torch.pi * torch.arange(64) * tau)
        phi = torch.relu(cosines @ parameters["embedding.weight"].T + parameters["embedding.bias"])
        torch.testing.assert_close(row[:3], network.head(features * phi), rtol=1e-4, atol=1e-5)


def test_iqn_without_noise_takes_32_middles() -> None:
    network = network_of(config(distribution="iqn"))

    outputs = forward_function(network)(*tensors(network), torch.zeros(2, 4), False).detach()

    taus = outputs.reshape(2, 32, 4)[..., 3]
    np.testing.assert_allclose(taus, np.broadcast_to((np.arange(32) + 0.5) / 32, (2, 32)))
