"""How long a run will take, from its first seconds; said once, when it is long.

Pure; called by the session with every status.
"""

from __future__ import annotations

from qfleet.terminal.console import RunStatus, duration

MEASURE_S = 3.0
LONG_S = 180.0


class Forecast:
    """Looks at a run once it has been learning for `MEASURE_S` seconds."""

    def __init__(self) -> None:
        self._learning_since: tuple[float, float] | None = None
        self._is_said = False

    def consider(self, status: RunStatus) -> str | None:
        """The warning for a run that its budget will end after more than three minutes, once."""
        if self._is_said or status.budget_fraction is None or status.learner_steps == 0:
            return None
        if self._learning_since is None:
            self._learning_since = (status.elapsed_s, status.budget_fraction)
            return None
        since_s, fraction = self._learning_since
        span_s, used = status.elapsed_s - since_s, status.budget_fraction - fraction
        if span_s < MEASURE_S or used <= 0:
            return None
        self._is_said = True
        left_s = span_s / used * (1.0 - status.budget_fraction)
        if left_s <= LONG_S:
            return None
        return (
            f"forecast: at this speed the budget ends in {duration(left_s)} (sooner when solved); "
            "for a look of one minute add --run.max_wall_s 60, and --resume goes on from there"
        )
