"""The convolutions of each `network.kind`, without PyTorch: checks before a start read them too.

Source: Mnih et al. 2013 (two convolutions, 256 units) and 2015 (three, 512 units); Young and Tian
2019 (MinAtar: one, 128 units). `tiny` is ours, for frames of half that size.
"""

from __future__ import annotations

from typing import NamedTuple


class Convolution(NamedTuple):
    """One square convolution."""

    channels: int
    kernel: int
    stride: int
    padding: int = 0

    def output_size(self, size: int) -> int:
        """Pixels a side of the output for `size` pixels a side; below 1 where it does not fit."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


CONVOLUTIONS: dict[str, tuple[Convolution, ...]] = {
    "convnet": (
        Convolution(128, 8, 4),
        Convolution(128, 4, 2),
        *[Convolution(128, 3, 1, padding=1)] * 3,
    ),
    "nature": (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1)),
    "small": (Convolution(16, 8, 4), Convolution(32, 4, 2)),
    "tiny": (Convolution(32, 6, 3), Convolution(32, 3, 2)),
    "minatar": (Convolution(16, 3, 1),),
}
"""By `network.kind`."""
CHANNELS_LAST_KINDS = frozenset({"convnet", "nature"})
"""Those that learn faster with an image's channels beside each other: wide ones (docs/games.md)."""
OBSERVATION_OF_KIND = {"mlp": "state", **dict.fromkeys(CONVOLUTIONS, "pixels"), "minatar": "planes"}
"""The `env.observation` that each `network.kind` takes."""


def smallest_frame_px(kind: str) -> int:
    """Pixels a side of the smallest frame that passes through the convolutions of `kind`."""
    return next(size for size in range(1, 1000) if _output_size(kind, size) >= 1)


def _output_size(kind: str, size: int) -> int:
    for conv in CONVOLUTIONS[kind]:
        size = conv.output_size(size) if size >= 1 else 0
    return size
