"""Convolutional Q-networks: the course's, the one of the Nature paper, and a small one for CPUs.

Built by `networks.build_network` for stacked frames. Inputs are float32 in [0, 1].
"""

from __future__ import annotations

from torch import nn

from qfleet.common.convolutions import Convolution


class ConvNetwork(nn.Sequential):
    """Convolutions, then linear layers; normalization and ReLU after each, then one per action.

    A convolution before a normalization has no bias; a linear layer has one, as in the course,
    whose network is `convnet` with `normalization="batch"` and hidden sizes (512,), layer by layer.
    `layer` normalizes a convolution's output over channels and pixels together (GroupNorm of one
    group), with a gain and an offset per channel.
    """

    def __init__(
        self,
        convolutions: tuple[Convolution, ...],
        shape: tuple[int, ...],
        n_actions: int,
        hidden_sizes: tuple[int, ...],
        normalization: str,
    ) -> None:
        channels, *sides = shape
        layers: list[nn.Module] = []
        for conv in convolutions:
            has_bias = normalization == "none"
            layers.append(
                nn.Conv2d(
                    channels, conv.channels, conv.kernel, conv.stride, conv.padding, bias=has_bias
                )
            )
            if normalization == "batch":
                layers.append(nn.BatchNorm2d(conv.channels))
            elif normalization == "layer":
                layers.append(nn.GroupNorm(1, conv.channels))
            layers.append(nn.ReLU(inplace=True))
            channels, sides = conv.channels, [conv.output_size(side) for side in sides]
        layers.append(nn.Flatten())
        width = channels * sides[0] * sides[1]
        for units in hidden_sizes:
            layers.append(nn.Linear(width, units))
            if normalization == "batch":
                layers.append(nn.BatchNorm1d(units))
            elif normalization == "layer":
                layers.append(nn.LayerNorm(units))
            layers.append(nn.ReLU(inplace=True))
            width = units
        layers.append(nn.Linear(width, n_actions))
        super().__init__(*layers)
