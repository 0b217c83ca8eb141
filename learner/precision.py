"""In which numbers a forward is computed: float32, or bfloat16 for what takes the time.

Called when a block's inputs are made. Parameters, optimizer, losses and the built-in networks' last
layers stay float32; convolutions and hidden layers get inputs and parameters rounded (autocast). On
a GPU, float32 of a network of convolutions means TF32: products of factors rounded to 11 bits,
summed up in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qfleet.common.forward import Forward
from qfleet.learner.plan import Precision


def use_tf32() -> None:
    """Matrix products on a GPU as PyTorch computes convolutions there anyhow."""
    torch.backends.cuda.matmul.allow_tf32 = True


def in_precision(forward: Forward, precision: Precision, device: str) -> Forward:
    """`forward` with float32 parameters, inputs and outputs, computed in `precision`."""
    if precision == "float32":
        return forward
    device_type = torch.device(device).type

    def rounded(
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        training: bool,
        noise: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16):
            outputs = forward(parameters, buffers, inputs, training, noise)
        return outputs.float()

    return rounded
