"""Heads that give a distribution of the return for each action, in NumPy: widths and Q-values.

Read by whoever acts; the learner's losses have the same in PyTorch (a test compares them).

Source: Bellemare et al. 2017 (C51); Dabney et al. 2018 (QR-DQN); Dabney et al. 2018b (IQN).
"""

from __future__ import annotations

import numpy as np

from qfleet.common.config import NetworkConfig
from qfleet.common.types import Array

N_TAUS_ACTING = 32
"""K of IQN: quantile fractions over which a Q-value is averaged."""
N_COSINES = 64
"""n of IQN: cosines of a fraction that its embedding takes."""


def outputs_per_action(config: NetworkConfig) -> int:
    """Numbers that the last layer has for each action; of IQN for each fraction."""
    return config.n_atoms if config.distribution in ("c51", "qr") else 1


def support(config: NetworkConfig) -> Array:
    """float64 [N]: the returns z that C51 gives probabilities to, equally far apart."""
    assert config.value_min is not None, "checked before"
    assert config.value_max is not None, "checked before"
    return np.linspace(config.value_min, config.value_max, config.n_atoms)


def q_values(config: NetworkConfig, outputs: Array, n_actions: int) -> Array:
    """Expected returns, `float32 [B, n_outputs] -> [B, A]`.

    IQN's outputs hold, for each fraction, a value per action and the fraction itself.
    """
    if config.distribution == "none":
        return outputs
    if config.distribution == "c51":
        return np.asarray(probabilities(outputs, n_actions) @ support(config).astype(np.float32))
    if config.distribution == "qr":
        return np.asarray(outputs.reshape(len(outputs), n_actions, -1).mean(axis=2))
    per_tau = outputs.reshape(len(outputs), -1, n_actions + 1)[..., :n_actions]
    return np.asarray(per_tau.mean(axis=1))


def probabilities(outputs: Array, n_actions: int) -> Array:
    """C51's softmax over each action's atoms, `float32 [B, A·N] -> [B, A, N]`."""
    logits = outputs.reshape(len(outputs), n_actions, -1)
    exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=2, keepdims=True))


def middle_taus(n: int) -> Array:
    """float32 [n]: the middles of n equal parts of [0, 1]."""
    return np.asarray((np.arange(n) + 0.5) / n, dtype=np.float32)


def divergences(
    config: NetworkConfig,
    outputs: Array,
    actions: Array,
    n_step_returns: Array,
    bootstrap_discounts: Array,
    next_outputs: Array,
    next_q_choosing: Array | None,
) -> Array:
    """KL(projected target ‖ prediction) of C51, `float64 [B]`; arguments as of `td.td_errors`.

    `outputs` are the online network's at s, `next_outputs` the target network's at s′.
    """
    rows, n_actions = np.arange(len(actions)), outputs.shape[1] // config.n_atoms
    choosing = (
        q_values(config, next_outputs, n_actions) if next_q_choosing is None else next_q_choosing
    )
    chosen = probabilities(next_outputs, n_actions)[rows, choosing.argmax(axis=1)]  # [B, N]
    predicted = probabilities(outputs, n_actions)[rows, actions].astype(np.float64)
    z = support(config)
    returns, discounts = (
        np.asarray(column, dtype=np.float64)[:, None]
        for column in (n_step_returns, bootstrap_discounts)
    )
    places = ((returns + discounts * z).clip(z[0], z[-1]) - z[0]) / (z[1] - z[0])
    shares = 1.0 - np.abs(places[:, None, :] - np.arange(len(z))[:, None])  # [B, N, N]
    targets = np.einsum("bij,bj->bi", shares.clip(min=0.0), chosen)
    smallest = np.finfo(np.float64).tiny
    ratios = np.log(targets.clip(min=smallest)) - np.log(predicted.clip(min=smallest))
    return np.asarray((targets * ratios).sum(axis=1).clip(min=0.0))
