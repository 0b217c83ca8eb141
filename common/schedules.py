"""Pure functions of a step: exploration ε and importance-sampling β.

Called by the actors (ε) and the learner (β). None keeps state, so a resume needs only the step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epsilon_ladder(n_slots: int, base: float, exponent: float) -> NDArray[np.float64]:
    """One constant ε per exploration slot, `float64 [n_slots]`.

    ε_i = base^(1 + exponent·i/(n_slots − 1)); a single slot plays `base`.

    Source: Horgan et al. 2018 (Ape-X).
    Differs: the paper divides by N − 1, which has no value at N = 1; there we use base.
    """
    if n_slots < 1:
        raise ValueError(f"n_slots must be at least 1, got {n_slots}")
    position = np.arange(n_slots) / max(1, n_slots - 1)
    return np.asarray(base ** (1.0 + exponent * position), dtype=np.float64)


def linear(step: float, start: float, end: float, decay_steps: int) -> float:
    """From `start` to `end` in a straight line over `decay_steps`, then `end`."""
    fraction = max(0.0, step / decay_steps)
    if fraction >= 1.0:
        return end  # start + (end − start) may miss it by a rounding
    return start + fraction * (end - start)


def cosine(step: float, start: float, end: float, decay_steps: int) -> float:
    """From `start` to `end` along half a cosine over `decay_steps`, then `end`.

    Source: Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts.
    """
    fraction = min(1.0, max(0.0, step / decay_steps))
    return end + 0.5 * (start - end) * (1.0 + float(np.cos(np.pi * fraction)))


def exponential(step: float, start: float, end: float, decay_steps: int) -> float:
    """`end + (start − end)·exp(−step/decay_steps)`: decay_steps is the time constant."""
    return end + (start - end) * float(np.exp(-max(0.0, step) / decay_steps))
