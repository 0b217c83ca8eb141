"""The built-in MLP in NumPy, in eval mode: what an actor plays with, without importing torch.

BatchNorm folds into the linear layer before it, so a step costs one matrix product per layer.
Called through `q_functions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.network_plan import LinearPlan, Stack, network_plan
from qfleet.common.types import Array

NORM_EPSILON = 1e-5
"""ε of BatchNorm and LayerNorm (PyTorch's default)."""


class NumpyMlp:
    """Q-values of the MLP whose PyTorch arrays it was built from, equal within float32 rounding.

    Owned by one thread: intermediate results are written into buffers kept between calls.
    """

    def __init__(self, config: NetworkConfig, arrays: Mapping[str, Array]) -> None:
        plan = network_plan(config, (0,), 0, 1)  # for the names; the arrays know their shapes
        self._body = _NumpyStack(plan.body, arrays)
        self._streams = [_NumpyStack(stack, arrays) for stack in plan.streams.values()]

    def q_values(self, observations: Array) -> Array:
        """`float32 [B, A]` for `[B, ...]` of any real dtype; a fresh array each call."""
        x = np.asarray(observations, dtype=np.float32).reshape(len(observations), -1)
        x = self._body.outputs(x)
        outputs = [stream.outputs(x) for stream in self._streams]
        if len(outputs) == 1:
            return outputs[0]
        values, advantages = outputs
        # Wang et al. 2016, eq. 9
        return np.asarray(values + advantages - advantages.mean(axis=1, keepdims=True))


class _NumpyStack:
    """The layers of one stack."""

    def __init__(self, stack: Stack, arrays: Mapping[str, Array]) -> None:
        self._hidden = [_NumpyLayer(plan, arrays) for plan in stack if plan.is_hidden]
        last = [_NumpyLayer(plan, arrays) for plan in stack if not plan.is_hidden]
        self._last = last[0] if last else None
        self._buffers: list[Array] = []

    def outputs(self, x: Array) -> Array:
        """Of the last layer, a fresh array; without one, of the last hidden layer."""
        if not self._buffers or len(self._buffers[0]) != len(x):
            self._buffers = [
                np.empty((len(x), len(layer.bias)), np.float32) for layer in self._hidden
            ]
        for layer, out in zip(self._hidden, self._buffers, strict=True):
            np.matmul(x, layer.weight, out=out)
            if layer.norm is None:
                out += layer.bias
            else:
                _layer_norm(out, *layer.norm)
            np.maximum(out, 0.0, out=out)
            x = out
        return x if self._last is None else np.asarray(x @ self._last.weight + self._last.bias)


class _NumpyLayer:
    """One linear layer with what follows it folded in where that can be."""

    def __init__(self, plan: LinearPlan, arrays: Mapping[str, Array]) -> None:
        weight = np.asarray(arrays[f"{plan.name}.weight"], dtype=np.float64)
        bias = arrays[f"{plan.name}.bias"] if plan.has_bias else np.zeros(len(weight))
        self.norm: tuple[Array, Array] | None = None
        if plan.normalization == "batch":
            weight, bias = _fold_batch_norm(weight, arrays, plan.norm_name)
        elif plan.normalization == "layer":
            gain, offset = (arrays[f"{plan.norm_name}.{part}"] for part in ("weight", "bias"))
            self.norm = (np.array(gain), np.array(offset))
        self.weight = np.ascontiguousarray(np.asarray(weight, dtype=np.float32).T)
        self.bias = np.array(bias, dtype=np.float32)


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
