"""The built-in MLP in NumPy, in eval mode: what an actor plays with, without importing torch.

BatchNorm folds into the linear layer before it, so a step costs one matrix product per layer.
Called through `q_functions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.types import Array

NORM_EPSILON = 1e-5
"""ε of BatchNorm and LayerNorm (PyTorch's default)."""


class NumpyMlp:
    """Q-values of the MLP whose PyTorch arrays it was built from, equal within float32 rounding.

    Owned by one thread: intermediate results are written into buffers kept between calls.
    """

    def __init__(self, config: NetworkConfig, arrays: Mapping[str, Array]) -> None:
        self._layers: list[tuple[Array, Array]] = []
        self._layer_norms: list[tuple[Array, Array] | None] = []
        index = 0
        for _ in config.hidden_sizes:
            weight = np.asarray(arrays[f"{index}.weight"], dtype=np.float64)
            norm = None
            if config.normalization == "none":
                bias = np.asarray(arrays[f"{index}.bias"], dtype=np.float64)
                index += 2
            else:
                bias = np.zeros(len(weight))
                if config.normalization == "batch":
                    weight, bias = _fold_batch_norm(weight, arrays, f"{index + 1}")
                else:
                    gain, offset = arrays[f"{index + 1}.weight"], arrays[f"{index + 1}.bias"]
                    norm = (np.array(gain), np.array(offset))
                index += 3
            self._append(weight, bias)
            self._layer_norms.append(norm)
        self._append(arrays[f"{index}.weight"], arrays[f"{index}.bias"])
        self._buffers: list[Array] = []

    def _append(self, weight: Array, bias: Array) -> None:
        transposed = np.ascontiguousarray(np.asarray(weight, dtype=np.float32).T)
        self._layers.append((transposed, np.array(bias, dtype=np.float32)))

    def q_values(self, observations: Array) -> Array:
        """`float32 [B, A]` for `[B, ...]` of any real dtype; a fresh array each call."""
        x = np.asarray(observations, dtype=np.float32).reshape(len(observations), -1)
        if not self._buffers or len(self._buffers[0]) != len(x):
            hidden = self._layers[:-1]
            self._buffers = [np.empty((len(x), len(b)), np.float32) for _, b in hidden]
        for (weight, bias), norm, out in zip(
            self._layers, self._layer_norms, self._buffers, strict=False
        ):
            np.matmul(x, weight, out=out)
            if norm is None:
                out += bias
            else:
                _layer_norm(out, *norm)
            np.maximum(out, 0.0, out=out)
            x = out
        weight, bias = self._layers[-1]
        return np.asarray(x @ weight + bias)


def _fold_batch_norm(weight: Array, arrays: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    """(W·s, β − mean·s) with s = γ/√(var + ε): eval-mode BatchNorm as part of the linear layer."""
    variance = np.asarray(arrays[f"{name}.running_var"], dtype=np.float64)
    scale = arrays[f"{name}.weight"] / np.sqrt(variance + NORM_EPSILON)
    offset = arrays[f"{name}.bias"] - arrays[f"{name}.running_mean"] * scale
    return weight * scale[:, None], offset


def _layer_norm(x: Array, gain: Array, offset: Array) -> None:
    """LayerNorm over the last axis, in place."""
    x -= x.mean(axis=1, keepdims=True)
    x /= np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(NORM_EPSILON))
    x *= gain
    x += offset
