"""Batches from the replay on the learner's device: one host buffer, on a GPU one transfer.

Called by the learner for every block. On a GPU the buffer is page-locked, so that the transfer runs
beside the host. Observations travel as they are stored: pixels as bytes, or as the places of frames
that lie there already (`device_frames.py`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qfleet.common.types import Array, ReplaySample
from qfleet.learner.backend import batch_columns
from qfleet.learner.device_frames import DeviceFrames
from qfleet.learner.update import Batches

_ALIGNMENT_BYTES = 64
"""Of every column in the buffer: as torch's own allocations, and enough for any dtype."""

_Layout = list[tuple[tuple[int, ...], np.dtype]]


class BatchStager:
    """Copies a sample's columns into memory that is used again for the next one.

    Invariants: the batches are valid until the next call; the buffer is not filled again before
    its transfer has ended. Owned by one thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layout: _Layout = []
        self._on_host, self._on_device = torch.empty(0), torch.empty(0)
        self._arrays: list[Array] = []
        self._tensors: list[Tensor] = []
        self._sent: torch.cuda.Event | None = None
        self._frames = DeviceFrames(device)

    def stage(self, sample: ReplaySample) -> Batches:
        """The sample as tensors `[K, B, …]`; stacks whole, also where it names their frames."""
        is_located = sample.new_frames is not None
        if is_located:
            sample = self._frames.located(sample)
        wanted = batch_columns(sample)
        layout = [(array.shape, dtype) for array, dtype in wanted]
        if layout != self._layout:
            self._allocate(layout)
        if self._sent is not None:
            self._sent.synchronize()
        for target, (source, _) in zip(self._arrays, wanted, strict=True):
            np.copyto(target, source, casting="unsafe")
        if self._device.type == "cuda":
            self._send()
        batches = Batches(*self._tensors)
        return self._frames.unfolded(batches) if is_located else batches

    def _allocate(self, layout: _Layout) -> None:
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in layout]
        padded = [-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes]
        n_bytes, is_cuda = sum(padded), self._device.type == "cuda"
        self._on_host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=is_cuda)
        self._on_device = (
            torch.empty(n_bytes, dtype=torch.uint8, device=self._device)
            if is_cuda
            else self._on_host
        )

        def views(buffer: Tensor) -> list[Tensor]:
            columns = zip(torch.split(buffer, padded), sizes, layout, strict=True)
            return [
                part[:n].view(_torch_dtype(dtype)).view(shape)
                for part, n, (shape, dtype) in columns
            ]

        self._arrays = [tensor.numpy() for tensor in views(self._on_host)]
        self._tensors = views(self._on_device)
        self._layout = layout

    def _send(self) -> None:
        self._on_device.copy_(self._on_host, non_blocking=True)
        if self._sent is None:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
        self._sent.record(torch.cuda.current_stream(self._device))


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
