"""Where a pool keeps its frames: as they are in one array, or each compressed by itself.

Owned by `frame_pool.py`. Compressed frames of Atari take a thirtieth to a fifth of their bytes, and
every draw pays for it: 3 to 15 µs for each frame that it names.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from qfleet.common.types import Array

Compression = Literal["none", "zlib"]
_LEVEL = 1
"""zlib's fastest: higher ones gain a few per cent of an Atari frame at twice the time and more."""


class FrameStore(Protocol):
    """Frames uint8 [H, W] by place, 0 … len − 1; not thread-safe."""

    def __len__(self) -> int:
        """Places."""
        ...

    def put(self, places: Array, frames: Array) -> None:
        """Have `frames` [n, H, W] at `places` int [n]."""
        ...

    def copy(self, places: Array, out: Array) -> None:
        """Write the frames at `places` int [n] into `out` uint8 [n, H·W]."""
        ...

    def part(self, first: int, end: int) -> Array:
        """The frames at the places `first` … `end` − 1, not to be written to."""
        ...

    def grow(self, n: int, kept: int) -> None:
        """Have `n` places; of the old ones only those below `kept` hold something."""
        ...

    def target(self, n: int) -> Any:
        """What a restore writes the first `n` frames into, by slices, as into an array."""
        ...


class RawFrames:
    """See `FrameStore`.

    Memory is asked for in one piece that the operating system fills page by page, so that what is
    resident follows the highest place that was used.
    """

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        self._frames = np.empty((n, *shape), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, places: Array, frames: Array) -> None:
        """See `FrameStore`."""
        self._frames[places] = frames

    def copy(self, places: Array, out: Array) -> None:
        """See `FrameStore`."""
        # "clip" spares the copy that "raise" makes: places come from the pool's own rows.
        self._frames.reshape(len(self._frames), -1).take(places, axis=0, mode="clip", out=out)

    def part(self, first: int, end: int) -> Array:
        """See `FrameStore`; a view."""
        return self._frames[first:end]

    def grow(self, n: int, kept: int) -> None:
        """See `FrameStore`."""
        frames = np.empty((n, *self._frames.shape[1:]), dtype=np.uint8)
        frames[:kept] = self._frames[:kept]
        self._frames = frames

    def target(self, n: int) -> Any:
        """See `FrameStore`."""
        return self._frames[:n]


class ZlibFrames:
    """See `FrameStore`; a frame is decompressed once for all draws of a call that name it."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        self._shape, self._n_bytes = shape, int(np.prod(shape))
        self._packed: list[bytes] = [b""] * n

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def packed_bytes(self) -> int:
        """Of all frames held, those that may be overwritten included."""
        return sum(map(len, self._packed))

    def put(self, places: Array, frames: Array) -> None:
        """See `FrameStore`."""
        for place, frame in zip(places.tolist(), frames, strict=True):
            self._packed[place] = zlib.compress(frame.tobytes(), _LEVEL)

    def copy(self, places: Array, out: Array) -> None:
        """See `FrameStore`."""
        named, where = np.unique(places, return_inverse=True)
        self._unpacked(named.tolist()).take(where, axis=0, mode="clip", out=out)

    def part(self, first: int, end: int) -> Array:
        """See `FrameStore`."""
        return self._unpacked(range(first, end)).reshape(end - first, *self._shape)

    def _unpacked(self, places: Sequence[int]) -> Array:
        """uint8 [n, H·W]."""
        frames = np.empty((len(places), self._n_bytes), dtype=np.uint8)
        for row, place in enumerate(places):
            data = zlib.decompress(self._packed[place], bufsize=self._n_bytes)
            frames[row] = np.frombuffer(data, dtype=np.uint8)
        return frames

    def grow(self, n: int, kept: int) -> None:
        """See `FrameStore`."""
        self._packed = [*self._packed[:kept], *[b""] * (n - kept)]

    def target(self, n: int) -> Any:
        """See `FrameStore`."""
        return _Target(self, n, self._shape)


class _Target:
    """Compresses what is written into it by slices; has an array's form."""

    dtype = np.dtype(np.uint8)

    def __init__(self, store: ZlibFrames, n: int, shape: tuple[int, ...]) -> None:
        self._store = store
        self.shape = (n, *shape)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __setitem__(self, rows: slice, frames: Array) -> None:
        self._store.put(np.arange(rows.start, rows.stop), frames)


def make_store(compression: Compression, n: int, shape: tuple[int, ...]) -> FrameStore:
    """`n` places for frames of `shape` [H, W]."""
    return RawFrames(n, shape) if compression == "none" else ZlibFrames(n, shape)
