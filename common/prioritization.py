"""What prioritized replay's parts agree on: priority of a TD error, importance-sampling weight.

The actor (initial priorities), the replay shard and the learner all call these two functions, so
there is one formula in one place.

Source: Schaul et al. 2016 (Prioritized Experience Replay), proportional variant.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.types import Array


def sampling_weights(td_errors_abs: Array, exponent: float, priority_epsilon: float) -> Array:
    """(|δ| + ε)^α, `float64 [n]`: an item is drawn in proportion to it.

    Raises:
        ValueError: when a TD error is negative, NaN or infinite.
    """
    errors = np.asarray(td_errors_abs, dtype=np.float64)
    if not (np.isfinite(errors).all() and (errors >= 0.0).all()):
        raise ValueError("priorities must be finite and not negative")
    return np.asarray((errors + priority_epsilon) ** exponent)


def importance_weights(probabilities: Array, n_items: int, exponent: float) -> Array:
    """Weights (N·P)^(−β) divided by their maximum along the last axis, `float32`, same shape.

    Differs: the paper divides by the maximum over the whole memory or the batch as an
    implementation detail; we use the batch, whose maximum does not depend on one rare item.
    """
    weights = (n_items * np.asarray(probabilities, dtype=np.float64)) ** -exponent
    return np.asarray(weights / weights.max(axis=-1, keepdims=True), dtype=np.float32)
