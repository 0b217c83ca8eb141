"""Turns steps into n-step transitions: the one place that knows γ and n.

Called by the actor core, once per vector step.

Source: Sutton and Barto 2018, sec. 7.1 (n-step returns); Horgan et al. 2018 (Ape-X), sec. 3.
Differs: the last n − 1 windows of an episode are kept, with the k steps that they really have;
Ape-X implementations often drop them, or pad them with invented terminal states.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.errors import CheckpointError, InvariantError
from qfleet.common.pixels.stored_columns import stored_columns
from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    Capture,
    Columns,
    EnvironmentSpec,
)
from qfleet.common.vector_envs import StepResult


class NStepAccumulator:
    """Open windows of E sub-environments, each in a ring of its own; not thread-safe.

    Every step opens one window, and every window ends as exactly one transition (or is dropped by
    `drop_pending`), so `opened == produced + pending + dropped` at any time. Returns are summed in
    float64.
    """

    def __init__(self, n_envs: int, n_step: int, discount: float, spec: EnvironmentSpec) -> None:
        if n_envs < 1 or n_step < 1 or not 0.0 < discount <= 1.0:
            raise ValueError(
                "n_envs and n_step must be at least 1 and discount in (0, 1], got "
                f"{n_envs}, {n_step}, {discount} (actors.n_step, actors.discount)"
            )
        self._n_step = n_step
        self._discount = discount
        # Rows of a push are ages, oldest first: the window opened n − 1 steps ago … just now.
        self._ages = np.arange(n_step - 1, -1, -1)[:, None]  # [n, 1]
        self._discount_powers = discount ** (self._ages[:, 0] + 1.0)  # [n]
        self._all_envs = np.arange(n_envs)
        observation = stored_columns(spec)[0]
        shape = (n_step, n_envs, *observation.shape)
        self._observations = np.zeros(shape, dtype=observation.dtype)
        self._actions = np.zeros((n_step, n_envs), dtype=np.int32)
        self._rewards = np.zeros((n_step, n_envs), dtype=np.float64)
        self._position = np.zeros(n_envs, dtype=np.int64)
        """int64 [E] slot that the next step goes to."""
        self._open = np.zeros(n_envs, dtype=np.int64)
        """int64 [E] windows that still wait for steps."""
        self.opened = 0
        """Windows opened since the start: one per step."""
        self.produced = 0
        """Transitions handed out since the start."""
        self.dropped = 0
        """Windows that `drop_pending` gave up."""

    @property
    def pending(self) -> int:
        """Open windows: steps that are not yet a transition."""
        return int(self._open.sum())

    def push(self, observations: Array, actions: Array, result: StepResult) -> Columns | None:
        """The transitions that this step completes, oldest window first, then by sub-environment.

        At an episode's end all its windows complete, with the return of their k ≤ n real steps and
        γᵏ·(1 − terminated): a truncated one still bootstraps from the final observation. Reset
        steps do nothing. None when nothing completes.

        Args:
            observations: `[E, ...]` that the actions were chosen from, or their frame numbers.
            actions: int [E].
            result: what the environment made of them.
        """
        active = result.is_transition
        envs = self._all_envs if active.all() else np.flatnonzero(active)
        position = self._position[envs]
        self._observations[position, envs] = observations[envs]
        self._actions[position, envs] = actions[envs]
        self._rewards[position, envs] = result.rewards[envs]
        n_windows = self._open[envs] + 1
        terminated = result.terminated[envs]
        ended = terminated | result.truncated[envs]

        slots = (position - self._ages) % self._n_step  # [n, m]
        completes = (self._ages < n_windows) & (ended | (self._ages == self._n_step - 1))
        rows, columns = np.nonzero(completes)

        self._position[envs] = (position + 1) % self._n_step
        self._open[envs] = np.where(ended, 0, np.minimum(n_windows, self._n_step - 1))
        self.opened += len(envs)
        self.produced += len(rows)
        if not len(rows):
            return None
        returns = self._returns(slots, envs)[rows, columns]
        slots, envs = slots[rows, columns], envs[columns]
        return {
            OBSERVATION: self._observations[slots, envs],
            ACTION: self._actions[slots, envs],
            N_STEP_RETURN: returns.astype(np.float32),
            BOOTSTRAP_DISCOUNT: (self._discount_powers[rows] * ~terminated[columns]).astype(
                np.float32
            ),
            NEXT_OBSERVATION: result.next_observations[envs].astype(
                self._observations.dtype, copy=False
            ),
        }

    def _returns(self, slots: Array, envs: Array) -> Array:
        """float64 [n, m] discounted sums from each window's first step to the latest (Horner)."""
        returns = self._rewards[slots, envs]
        for row in range(self._n_step - 2, -1, -1):
            returns[row] += self._discount * returns[row + 1]
        return returns

    def drop_pending(self) -> int:
        """Give up all open windows (their episodes will not go on); how many there were."""
        count = self.pending
        self._open[:] = 0
        self.dropped += count
        return count

    def capture(self) -> Capture:
        """The open windows and the counters."""
        meta = {"opened": self.opened, "produced": self.produced, "dropped": self.dropped}
        arrays = {
            "observations": self._observations,
            "actions": self._actions,
            "rewards": self._rewards,
            "position": self._position,
            "open": self._open,
        }
        return Capture(dict(meta), {name: array.copy() for name, array in arrays.items()})

    def restore(self, capture: Capture) -> None:
        """The inverse of `capture`.

        Raises:
            CheckpointError: when it was captured with another n_step, E or observation shape.
        """
        held, wanted = capture.arrays["observations"].shape, self._observations.shape
        if held != wanted:
            raise CheckpointError(
                f"the checkpoint's n-step windows are {list(held)}, this actor's {list(wanted)} "
                "(actors.n_step, actors.envs_per_actor)"
            )
        self._observations = capture.arrays["observations"].copy()
        self._actions = capture.arrays["actions"].copy()
        self._rewards = capture.arrays["rewards"].copy()
        self._position = capture.arrays["position"].copy()
        self._open = capture.arrays["open"].copy()
        self.opened = capture.meta["opened"]
        self.produced = capture.meta["produced"]
        self.dropped = capture.meta["dropped"]

    def check_valid(self) -> None:
        """Raise `InvariantError` when a window was lost or counted twice."""
        if self.opened != self.produced + self.pending + self.dropped:
            raise InvariantError(
                f"{self.opened} windows opened, but {self.produced} produced + {self.pending} "
                f"pending + {self.dropped} dropped"
            )
        if self._open.min() < 0 or self._open.max() > self._n_step - 1:
            raise InvariantError(f"open windows {self._open} outside 0…{self._n_step - 1}")
        if self._position.min() < 0 or self._position.max() >= self._n_step:
            raise InvariantError(f"positions {self._position} outside the ring of {self._n_step}")
