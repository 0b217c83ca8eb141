"""Networks of convolutions: the course's layer by layer, shapes, inputs, and what they act with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.config import NetworkConfig
from qfleet.common.convolutions import CONVOLUTIONS, smallest_frame_px
from qfleet.common.forward import forward_function, input_transform, scaled_frames
from qfleet.common.networks import build_network, load_arrays, to_arrays
from qfleet.common.q_functions import QFunctions, TorchQFunction
from qfleet.common.types import Array, EnvironmentSpec

torch.set_num_threads(1)

SPEC = EnvironmentSpec("CartPole-v1", (8, 84, 84), "|u1", 2, 475.0, 500, frame_stack=8)
SMALL_SPEC = EnvironmentSpec("CartPole-v1", (2, 36, 36), "|u1", 2, 475.0, 500, frame_stack=2)
COURSE = NetworkConfig(kind="convnet", hidden_sizes=(512,), normalization="batch")


class ConvNet(nn.Sequential):
    """The chapter's own class (section 14.2)."""

    def __init__(self, in_channels: int, num_actions: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 128, kernel_size=8, stride=4, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=4, stride=2, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, stride=1, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, stride=1, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, stride=1, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(128 * 9 * 9, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Linear(512, num_actions),
        )


def frames(n: int, spec: EnvironmentSpec = SMALL_SPEC, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *spec.observation_shape), dtype=np.uint8)


def arrays_of(network: nn.Module) -> dict[str, Array]:
    return to_arrays({**dict(network.named_parameters()), **dict(network.named_buffers())})


def test_convnet_is_the_courses_layer_by_layer() -> None:
    ours, course = build_network(COURSE, SPEC, seed=3), ConvNet(8, 2)

    assert [str(layer) for layer in ours] == [str(layer) for layer in course]
    load_arrays(ours, arrays_of(course))
    inputs = torch.rand(2, 8, 84, 84)
    torch.testing.assert_close(ours.eval()(inputs), course.eval()(inputs), rtol=0, atol=0)
    assert sum(p.numel() for p in ours.parameters()) == 6_080_642 - 128 * 5 + 1_280 + 1_024


def test_the_chapters_own_class_works_as_a_factory() -> None:
    config = NetworkConfig(factory=f"{__name__}:ConvNet")
    import sys

    sys.modules.setdefault(__name__, sys.modules[ConvNet.__module__])

    network = build_network(config, SPEC, seed=3)

    assert [str(layer) for layer in network] == [str(layer) for layer in ConvNet(8, 2)]


@pytest.mark.parametrize(
    ("kind", "hidden_sizes", "n_parameters"),
    [
        ("nature", (512,), 8_224 + 32_832 + 36_928 + 3_136 * 512 + 512 + 1_026),
        ("small", (256,), 4_112 + 8_224 + 2_592 * 256 + 256 + 514),
    ],
)
def test_published_networks_have_the_published_size(
    kind: str, hidden_sizes: tuple[int, ...], n_parameters: int
) -> None:
    spec = EnvironmentSpec("E", (4, 84, 84), "|u1", 2, None, None, frame_stack=4)
    config = NetworkConfig.model_validate({"kind": kind, "hidden_sizes": hidden_sizes})

    network = build_network(config, spec, seed=1)

    assert sum(p.numel() for p in network.parameters()) == n_parameters


def test_tiny_takes_wide_frames() -> None:
    spec = EnvironmentSpec("E", (8, 18, 42), "|u1", 2, None, None, frame_stack=8)
    config = NetworkConfig(kind="tiny", hidden_sizes=(128,))

    network = build_network(config, spec, seed=1)

    # 18 × 42 pixels become 5 × 13, and those 2 × 6.
    convolutions = 32 * (8 * 36 + 1) + 32 * (32 * 9 + 1)
    linear = 128 * (32 * 2 * 6 + 1) + 2 * (128 + 1)
    assert sum(p.numel() for p in network.parameters()) == convolutions + linear
    assert network(torch.rand(3, 8, 18, 42)).shape == (3, 2)


@pytest.mark.parametrize("kind", list(CONVOLUTIONS))
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_networks_take_the_smallest_frames_and_no_smaller(kind: str, normalization: str) -> None:
    size = smallest_frame_px(kind)
    config = NetworkConfig.model_validate(
        {"kind": kind, "hidden_sizes": (5,), "normalization": normalization}
    )

    def spec(size: int) -> EnvironmentSpec:
        return EnvironmentSpec("E", (2, size, size), "|u1", 3, None, None, frame_stack=2)

    network = build_network(config, spec(size), seed=1)
    assert network(torch.rand(4, 2, size, size)).shape == (4, 3)
    with pytest.raises(RuntimeError):
        build_network(config, spec(size - 1), seed=1)(torch.rand(4, 2, size - 1, size - 1))


def test_layer_normalization_is_over_channels_and_pixels() -> None:
    config = NetworkConfig(kind="small", hidden_sizes=(4,), normalization="layer")
    network = build_network(config, SMALL_SPEC, seed=1)

    normalized = network[1](network[0](torch.rand(3, 2, 36, 36)))

    torch.testing.assert_close(normalized.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        normalized.var(dim=(1, 2, 3), unbiased=False), torch.ones(3), rtol=1e-3, atol=1e-3
    )


def test_frames_are_divided_by_255_and_keep_their_shape() -> None:
    stored = torch.from_numpy(frames(3))

    inputs = input_transform(SMALL_SPEC)(stored)

    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, stored.double().div(255).float(), rtol=1e-6, atol=0)
    assert stored.dtype == torch.uint8
    state = EnvironmentSpec("E", (2, 2), "<f4", 2, None, None)
    assert input_transform(state)(torch.ones(3, 2, 2)).shape == (3, 4)


def test_forward_function_is_the_module_and_moves_the_statistics() -> None:
    config = NetworkConfig(kind="small", hidden_sizes=(4,), normalization="batch")
    network, twin = (build_network(config, SMALL_SPEC, seed=1) for _ in range(2))
    buffers = {name: b.detach().clone() for name, b in network.named_buffers()}
    inputs = scaled_frames(torch.from_numpy(frames(6)))
    kept = inputs.clone()

    outputs = forward_function(network)(dict(network.named_parameters()), buffers, inputs, True)

    torch.testing.assert_close(outputs, twin.train()(inputs), rtol=0, atol=0)
    assert torch.equal(inputs, kept)
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffers[name], buffer)


# Acting


def test_q_functions_of_several_snapshots_share_one_module() -> None:
    config = NetworkConfig(kind="small", hidden_sizes=(4,), normalization="batch")
    networks = [build_network(config, SMALL_SPEC, seed=seed).eval() for seed in (1, 2)]
    q_functions = QFunctions(config, SMALL_SPEC)
    first, second = (q_functions.of(arrays_of(network)) for network in networks)
    observations = frames(5)

    for _ in range(2):
        for q_function, network in zip((first, second), networks, strict=True):
            expected = network(torch.from_numpy(observations / np.float32(255.0)))
            np.testing.assert_allclose(
                q_function.q_values(observations), expected.detach().numpy(), rtol=1e-5, atol=1e-6
            )
    assert isinstance(first, TorchQFunction)
    assert isinstance(second, TorchQFunction)
    assert first._functions is second._functions
    assert observations.dtype == np.uint8


def test_minatar_network_is_the_papers_on_planes_as_they_are() -> None:
    spec = EnvironmentSpec("MinAtar/Breakout-v0", (4, 10, 10), "|u1", 6, None, None)
    network = build_network(NetworkConfig(kind="minatar", hidden_sizes=(128,)), spec, seed=1)
    conv, *_, hidden, _, last = network.children()
    planes = torch.from_numpy(np.eye(10, dtype=np.uint8)[None, None].repeat(4, axis=1))

    assert (conv.in_channels, conv.out_channels) == (4, 16)
    assert (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
    assert (hidden.in_features, hidden.out_features, last.out_features) == (1024, 128, 6)
    inputs = input_transform(spec)(planes)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.amax(), torch.tensor(1.0))  # not divided by 255
    assert network(inputs).shape == (1, 6)
