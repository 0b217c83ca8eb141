"""How long a run will take, from its speed since it began to learn.

Pure; called by the session with every status.
"""

from __future__ import annotations

from qfleet.terminal.console import RunStatus, duration

MEASURE_S = 3.0
LONG_S = 180.0


class Forecast:
    """Follows how the budget is used up in this process: what an earlier one used took its time."""

    def __init__(self) -> None:
        self._since_s, self._since_fraction = 0.0, 0.0
        self._has_begun = self._is_learning = self._is_said = False

    def left_s(
        self, elapsed_s: float, budget_fraction: float | None, learner_steps: int
    ) -> float | None:
        """Seconds until the budget nearest to its end is used up; None while that is not known.

        Counted from the first call, again from where learning begins, for before that steps cost
        less, and again after the counters went back.
        """
        if budget_fraction is None:
            return None
        if budget_fraction >= 1.0:
            return 0.0
        begins_to_learn = learner_steps > 0 and not self._is_learning
        if not self._has_begun or begins_to_learn or budget_fraction < self._since_fraction:
            self._has_begun, self._is_learning = True, learner_steps > 0
            self._since_s, self._since_fraction = elapsed_s, budget_fraction
        used = budget_fraction - self._since_fraction
        return (elapsed_s - self._since_s) / used * (1.0 - budget_fraction) if used > 0 else None

    def consider(self, status: RunStatus) -> str | None:
        """The warning for a run that its budget will end after more than three minutes, once."""
        is_measured = self._is_learning and status.elapsed_s - self._since_s >= MEASURE_S
        if self._is_said or status.eta_s is None or not is_measured:
            return None
        self._is_said = True
        if status.eta_s <= LONG_S:
            return None
        return (
            f"forecast: at this speed the budget ends in {duration(status.eta_s)} (sooner when "
            "solved); for a look of one minute add --run.max_wall_s 60, and --resume goes on from "
            "there"
        )
