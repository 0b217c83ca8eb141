"""The built-in MLP in NumPy, in eval mode: what an actor plays with, without importing torch.

BatchNorm folds into the linear layer before it, so a step costs one matrix product per layer.
Called through `q_functions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.distributions import N_COSINES, N_TAUS_ACTING, middle_taus, q_values
from qfleet.common.network_plan import LinearPlan, Stack, network_plan
from qfleet.common.types import Array

NORM_EPSILON = 1e-5
"""ε of BatchNorm and LayerNorm (PyTorch's default)."""


class NumpyMlp:
    """Q-values of the MLP whose PyTorch arrays it was built from, equal within float32 rounding.

    Owned by one thread: intermediate results are written into buffers kept between calls.
    """

    def __init__(self, config: NetworkConfig, arrays: Mapping[str, Array], n_actions: int) -> None:
        plan = network_plan(config, (0,), n_actions)  # for the names; the arrays know their shapes
        self._config, self._n_actions = config, n_actions
        taken = _NoiseTaken()
        body, streams = plan.body, list(plan.streams.values())
        if len(streams) == 1 and plan.embedding is None:
            body, streams = body + streams[0], []  # every call costs a small network something
        self._body = _NumpyStack(body, arrays, taken)
        self._embedded = None if plan.embedding is None else _embedded(arrays)
        self._streams = [_NumpyStack(stack, arrays, taken) for stack in streams]

    def q_values(self, observations: Array, noise: Array | None = None) -> Array:
        """`float32 [B, A]` for `[B, ...]` of any real dtype; a fresh array each call.

        `noise` is float32 [B, n_noise] of a network with noisy layers; without it they are their
        means.
        """
        outputs = self.outputs(observations, noise)
        if self._embedded is None:
            return q_values(self._config, outputs, self._n_actions)
        per_tau = outputs.reshape(len(observations), len(self._embedded), -1)
        return np.asarray(per_tau.mean(axis=1))

    def outputs(self, observations: Array, noise: Array | None = None) -> Array:
        """`float32 [B, n_outputs]`; of IQN [B·K, A], K fractions for each row."""
        x = np.asarray(observations, dtype=np.float32).reshape(len(observations), -1)
        noise = None if noise is None else np.sign(noise) * np.sqrt(np.abs(noise))
        x = self._body.outputs(x, noise)
        if self._embedded is not None:
            n_taus = len(self._embedded)
            x = (x[:, None] * self._embedded).reshape(len(x) * n_taus, -1)
            noise = None if noise is None else noise.repeat(n_taus, axis=0)
        if not self._streams:
            return x
        outputs = [stream.outputs(x, noise) for stream in self._streams]
        if len(outputs) == 1:
            return outputs[0]
        values, advantages = outputs
        per_action = advantages.reshape(len(values), self._n_actions, -1)
        centered = per_action - per_action.mean(axis=1, keepdims=True)
        # Wang et al. 2016, eq. 9
        return np.asarray((values[:, None] + centered).reshape(len(values), -1))


def _embedded(arrays: Mapping[str, Array]) -> Array:
    """φ of the fractions that IQN acts with, `float32 [K, d]`: the same for every state."""
    taus = middle_taus(N_TAUS_ACTING)[:, None]
    cosines = np.cos(taus * (np.pi * np.arange(N_COSINES)), dtype=np.float64)
    weight, bias = arrays["embedding.weight"], arrays["embedding.bias"]
    embedded = cosines @ weight.T.astype(np.float64) + bias
    return np.asarray(np.maximum(embedded, 0.0), dtype=np.float32)


class _NoiseTaken:
    """How much of the noise the layers before have taken."""

    def __init__(self) -> None:
        self._n = 0

    def take(self, n: int) -> slice:
        """The next `n` numbers."""
        self._n += n
        return slice(self._n - n, self._n)


class _NumpyStack:
    """The layers of one stack."""

    def __init__(self, stack: Stack, arrays: Mapping[str, Array], taken: _NoiseTaken) -> None:
        layers = [_NumpyLayer(plan, arrays, taken) for plan in stack]
        has_last = bool(stack) and not stack[-1].is_hidden
        self._hidden = layers[:-1] if has_last else layers
        self._last = layers[-1] if has_last else None
        self._buffers: list[Array] = []

    def outputs(self, x: Array, noise: Array | None) -> Array:
        """Of the last layer, a fresh array; without one, of the last hidden layer."""
        if not self._buffers or len(self._buffers[0]) != len(x):
            self._buffers = [
                np.empty((len(x), len(layer.bias)), np.float32) for layer in self._hidden
            ]
        for layer, out in zip(self._hidden, self._buffers, strict=True):
            np.matmul(x, layer.weight, out=out)
            if noise is not None:
                out += layer.spread(x, noise)
            if layer.norm is None:
                out += layer.bias
            else:
                _layer_norm(out, *layer.norm)
            np.maximum(out, 0.0, out=out)
            x = out
        if self._last is None:
            return x
        outputs = np.asarray(x @ self._last.weight + self._last.bias)
        return outputs if noise is None else outputs + self._last.spread(x, noise)


class _NumpyLayer:
    """One linear layer with what follows it folded in where that can be."""

    def __init__(self, plan: LinearPlan, arrays: Mapping[str, Array], taken: _NoiseTaken) -> None:
        weight, bias = _affine(plan, arrays, "")
        scale = np.ones(len(weight))
        self.norm: tuple[Array, Array] | None = None
        if plan.normalization == "batch":
            scale, bias = _folded_batch_norm(arrays, plan.norm_name)
        elif plan.normalization == "layer":
            gain, offset = (arrays[f"{plan.norm_name}.{part}"] for part in ("weight", "bias"))
            self.norm = (np.array(gain), np.array(offset))
        self.weight, self.bias = _transposed(weight * scale[:, None]), _single(bias)
        if plan.is_noisy:
            weight, bias = _affine(plan, arrays, "_sigma")
            self._sigma, self._bias_sigma = _transposed(weight * scale[:, None]), _single(bias)
            n_inputs, n_outputs = self.weight.shape
            self._into, self._out = taken.take(n_inputs), taken.take(n_outputs)

    def spread(self, x: Array, noise: Array) -> Array:
        """(σ(x ⊙ f(ε_in)) + σ_b) ⊙ f(ε_out), see `forward._noisy_linear`; `noise` is f(ε)."""
        spread = (x * noise[:, self._into]) @ self._sigma + self._bias_sigma
        return np.asarray(spread * noise[:, self._out])


def _affine(plan: LinearPlan, arrays: Mapping[str, Array], suffix: str) -> tuple[Array, Array]:
    """Weight and bias in float64; the bias is 0 where there is none."""
    weight = np.asarray(arrays[f"{plan.name}.weight{suffix}"], dtype=np.float64)
    return weight, arrays[f"{plan.name}.bias{suffix}"] if plan.has_bias else np.zeros(len(weight))


def _folded_batch_norm(arrays: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    """(s, β − mean·s), s = γ/√(var + ε): eval-mode BatchNorm as part of the linear layer."""
    variance = np.asarray(arrays[f"{name}.running_var"], dtype=np.float64)
    scale = arrays[f"{name}.weight"] / np.sqrt(variance + NORM_EPSILON)
    return scale, arrays[f"{name}.bias"] - arrays[f"{name}.running_mean"] * scale


def _transposed(weight: Array) -> Array:
    return np.ascontiguousarray(np.asarray(weight, dtype=np.float32).T)


def _single(bias: Array) -> Array:
    return np.array(bias, dtype=np.float32)


def _layer_norm(x: Array, gain: Array, offset: Array) -> None:
    """LayerNorm over the last axis, in place."""
    x -= x.mean(axis=1, keepdims=True)
    x /= np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(NORM_EPSILON))
    x *= gain
    x += offset
