"""The TD error in NumPy: the twin of the learner's, for an actor's initial priorities.

Called by the actor; a test of the learner compares the two.

Source: van Hasselt et al. 2016 (Double DQN), eq. 4; Horgan et al. 2018 (Ape-X), sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    Columns,
)

QValues = Callable[[Array], Array]
"""`float32 [B, *O]` observations to `float32 [B, A]` action values."""


def td_errors(
    q: Array,
    actions: Array,
    n_step_returns: Array,
    bootstrap_discounts: Array,
    q_next_target: Array,
    q_next_online: Array | None,
) -> Array:
    """δ = target − q of the taken action, signed, `float64 [B]`.

    target = R + bootstrap_discount · Q_target(s′, a*). With `q_next_online` (double Q-learning)
    a* is the online network's best action, else the target network's own. The first of equally
    good actions wins.

    Args:
        q: float [B, A] online values of the observations.
        actions: int [B] that were taken.
        n_step_returns: float [B].
        bootstrap_discounts: float [B], 0 where the episode terminated.
        q_next_target: float [B, A] target values of the next observations.
        q_next_online: float [B, A] online values of the next observations, or None.
    """
    rows = np.arange(len(actions))
    chooser = q_next_target if q_next_online is None else q_next_online
    next_values = q_next_target[rows, chooser.argmax(axis=1)].astype(np.float64)  # [B, A] -> [B]
    returns = np.asarray(n_step_returns, dtype=np.float64)
    discounts = np.asarray(bootstrap_discounts, dtype=np.float64)
    return np.asarray(returns + discounts * next_values - q[rows, actions].astype(np.float64))


def td_errors_by_networks(
    columns: Columns, online: QValues, target: QValues, *, double_q: bool
) -> Array:
    """δ of whole transitions, `float64 [B]`; `target` may be `online` itself."""
    next_observations = columns[NEXT_OBSERVATION]
    # With one network for both, choosing by either is the same and saves a forward.
    chooses_online = double_q and target != online  # `is` would tell bound methods apart
    return td_errors(
        online(columns[OBSERVATION]),
        columns[ACTION],
        columns[N_STEP_RETURN],
        columns[BOOTSTRAP_DISCOUNT],
        target(next_observations),
        online(next_observations) if chooses_online else None,
    )
