"""ε-greedy acting: how much each sub-environment explores, and what it then plays.

Called by the actor and the evaluator.

Source: Mnih et al. 2015 (ε-greedy, linear schedule); Horgan et al. 2018 (Ape-X, ε ladder).
"""

from __future__ import annotations

import numpy as np

from qfleet.actors.plan import ActorPlan
from qfleet.common import schedules
from qfleet.common.q_functions import QFunction as QFunction
from qfleet.common.types import Array


class Exploration:
    """ε of each sub-environment of one actor; a pure function of env steps or episodes.

    In the ladder, sub-environment e of the actor at `place` has the ε of step `place·E + e` out of
    `n_actors·E`. An actor's place is its slot while all slots are filled.
    """

    def __init__(self, plan: ActorPlan, place: int, n_actors: int, n_envs: int) -> None:
        if not 0 <= place < n_actors:
            raise ValueError(f"place must be in 0…{n_actors - 1}, got {place}")
        self._plan = plan
        self._n_envs = n_envs
        ladder = schedules.epsilon_ladder(
            n_actors * n_envs, plan.epsilon_base, plan.epsilon_ladder_exponent
        )
        self._ladder = ladder[place * n_envs : (place + 1) * n_envs].copy()
        self._ladder.flags.writeable = False

    def epsilons(self, fleet_env_steps: float, episodes: int) -> Array:
        """float64 [E] after `fleet_env_steps` of all actors together and `episodes` of this one."""
        plan = self._plan
        if plan.epsilon_schedule == "ladder":
            return self._ladder
        if plan.epsilon_schedule == "constant":
            return np.full(self._n_envs, plan.epsilon_end)
        if plan.epsilon_decay_episodes is not None:
            epsilon = schedules.linear(
                episodes, plan.epsilon_start, plan.epsilon_end, plan.epsilon_decay_episodes
            )
            return np.full(self._n_envs, epsilon)
        schedule = schedules.linear if plan.epsilon_schedule == "linear" else schedules.exponential
        epsilon = schedule(
            fleet_env_steps,
            plan.epsilon_start,
            plan.epsilon_end,
            plan.epsilon_decay_env_steps,
        )
        return np.full(self._n_envs, epsilon)


def explore(q_values: Array, epsilons: Array | float, uniforms: Array, n_actions: int) -> Array:
    """int32 [E]: the best action (the first of equals), or with probability ε any action.

    Args:
        q_values: float [E, A].
        epsilons: float [E], or one for all.
        uniforms: float64 [2, E] in [0, 1): one decides whether to explore, the other what to play.
        n_actions: A.
    """
    # u < 1 is at most 1 − 2⁻⁵³, whose product with A rounds below A.
    random_actions = (uniforms[1] * n_actions).astype(np.int32)
    greedy_actions = q_values.argmax(axis=1).astype(np.int32)  # [E, A] -> [E]
    return np.asarray(np.where(uniforms[0] < epsilons, random_actions, greedy_actions))


def select_actions(
    q_values: Array, epsilons: Array, rng: np.random.Generator, n_actions: int
) -> Array:
    """int32 [E] by ε-greedy; always draws 2·E numbers, so that a stream's position is known."""
    return explore(q_values, epsilons, rng.random((2, len(q_values))), n_actions)
