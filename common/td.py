"""The TD error in NumPy: the twin of the learner's, for an actor's initial priorities.

Called by the actor; a test of the learner compares the two.

Source: van Hasselt et al. 2016 (Double DQN), eq. 4; Horgan et al. 2018 (Ape-X), sec. 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qfleet.common import distributions
from qfleet.common.config import NetworkConfig
from qfleet.common.q_functions import NetworkFunction
from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    Columns,
)

MUNCHAUSEN_SCALE, MUNCHAUSEN_TEMPERATURE, MUNCHAUSEN_FLOOR = 0.9, 0.03, -1.0
"""α, τ and l₀ of the paper."""


class TdRule(NamedTuple):
    """Which TD error is meant."""

    network: NetworkConfig
    double_q: bool
    munchausen: bool


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


def munchausen_errors(
    q: Array,
    actions: Array,
    rewards: Array,
    bootstrap_discounts: Array,
    q_target: Array,
    q_next_target: Array,
) -> Array:
    """δ of the Munchausen target, signed, `float64 [B]`; arguments as of `td_errors`.

    `q_target` are the target network's values of the observations.
    Source: Vieillard et al. 2020, eq. 1.
    """
    rows = np.arange(len(actions))
    policy = _soft_values(q_target)
    log_policy = q_target[rows, actions].astype(np.float64) - policy
    bonus = MUNCHAUSEN_SCALE * np.clip(log_policy, MUNCHAUSEN_FLOOR, 0.0)
    returns = np.asarray(rewards, dtype=np.float64) + bonus
    discounts = np.asarray(bootstrap_discounts, dtype=np.float64)
    targets = returns + discounts * _soft_values(q_next_target)
    return np.asarray(targets - q[rows, actions].astype(np.float64))


def _soft_values(q: Array) -> Array:
    """τ ln Σ exp(Q/τ), `float64 [B]`."""
    scaled = q.astype(np.float64) / MUNCHAUSEN_TEMPERATURE
    top = scaled.max(axis=1, keepdims=True)
    sums = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
    return np.asarray(MUNCHAUSEN_TEMPERATURE * sums)


def td_errors_by_networks(
    columns: Columns, online: NetworkFunction, target: NetworkFunction, rule: TdRule
) -> Array:
    """What the priorities of whole transitions are made of, `float64 [B]`, signed.

    δ by Q-values, expected ones where the network has a distribution; of C51 the divergence that
    its loss is. `target` may be `online` itself.
    """
    # With one network for both, choosing by either is the same and saves a forward.
    chooses_online = rule.double_q and target is not online
    if rule.network.distribution == "c51":
        return _divergences(columns, online, target, rule.network, chooses_online)
    q, actions = online.q_values(columns[OBSERVATION]), columns[ACTION]
    returns, discounts = columns[N_STEP_RETURN], columns[BOOTSTRAP_DISCOUNT]
    next_observations = columns[NEXT_OBSERVATION]
    q_next = target.q_values(next_observations)
    if rule.munchausen:
        q_target = q if target is online else target.q_values(columns[OBSERVATION])
        return munchausen_errors(q, actions, returns, discounts, q_target, q_next)
    choosing = online.q_values(next_observations) if chooses_online else None
    return td_errors(q, actions, returns, discounts, q_next, choosing)


def _divergences(
    columns: Columns,
    online: NetworkFunction,
    target: NetworkFunction,
    network: NetworkConfig,
    chooses_online: bool,
) -> Array:
    next_observations = columns[NEXT_OBSERVATION]
    return distributions.divergences(
        network,
        online.outputs(columns[OBSERVATION]),
        columns[ACTION],
        columns[N_STEP_RETURN],
        columns[BOOTSTRAP_DISCOUNT],
        target.outputs(next_observations),
        online.q_values(next_observations) if chooses_online else None,
    )
