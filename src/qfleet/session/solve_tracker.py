"""When a run counts as solved, and which evaluated parameters are its best.

Pure; called by the session. A periodic evaluation that reaches the threshold is confirmed on
disjoint seeds, and only the confirmation is reported: the evaluation that selects a moment of
training is biased upwards. A run that goes on has every better one confirmed again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.seeding import seed_int
from qfleet.common.types import EnvironmentSpec
from qfleet.settings.config import Config


class Verdict(NamedTuple):
    """What one evaluation means."""

    is_best: bool
    is_solved: bool


@dataclass
class SolveTracker:
    """Numbers evaluations, gives each its seeds, and remembers the best and the confirmed one."""

    config: Config
    spec: EnvironmentSpec
    evaluations: int = 0
    best: EvaluationReport | None = None
    """The one whose parameters are `best/`."""
    confirmed: EvaluationReport | None = None
    """The best one that was confirmed."""
    solved_at_env_step: int | None = None
    """Of the first one that was confirmed."""
    last: EvaluationReport | None = None

    @property
    def threshold(self) -> float | None:
        """Mean return that counts as solved; None: nothing does."""
        wanted = self.config.eval.solved_at_return
        return self.spec.reward_threshold if wanted == "auto" else wanted

    def request(self) -> EvaluationRequest:
        """The next evaluation; seeds depend on its number alone."""
        self.evaluations += 1
        seed, evaluation = self.config.seed, self.config.eval
        worth_confirming = self.threshold
        if self.confirmed is not None:
            worth_confirming = math.nextafter(score(self.confirmed), math.inf)
        return EvaluationRequest(
            evaluation.episodes,
            seed_int(seed, "eval.select", self.evaluations),
            worth_confirming,
            evaluation.confirm_episodes,
            seed_int(seed, "eval.confirm", self.evaluations),
        )

    def record(self, report: EvaluationReport) -> Verdict:
        """Take in a report; a confirmed one gives way to one that is confirmed higher only."""
        self.last = report
        is_confirmed = self._is_confirmed(report)
        is_solved = is_confirmed and self.confirmed is None
        if self.confirmed is not None:
            is_best = is_confirmed and score(report) > score(self.confirmed)
        else:
            is_best = is_solved or self.best is None or score(report) > score(self.best)
        if is_solved:
            self.solved_at_env_step = report.env_steps
        if is_best:
            self.best = report
            self.confirmed = report if is_confirmed else None
        return Verdict(is_best, is_solved)

    def _is_confirmed(self, report: EvaluationReport) -> bool:
        threshold, confirmation = self.threshold, report.confirm_return_mean
        return threshold is not None and confirmation is not None and confirmation >= threshold

    def capture(self) -> dict[str, Any]:
        """State for a checkpoint."""
        state = asdict(self)
        del state["config"], state["spec"]
        for name in _REPORTS:
            report = getattr(self, name)
            state[name] = None if report is None else list(report)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`; what was confirmed must still reach the threshold."""
        self.evaluations = state["evaluations"]
        self.solved_at_env_step = state["solved_at_env_step"]
        for name in _REPORTS:
            value = state[name]
            setattr(self, name, None if value is None else EvaluationReport(*value))
        if self.confirmed is not None and not self._is_confirmed(self.confirmed):
            self.confirmed = self.solved_at_env_step = None


_REPORTS = ("best", "confirmed", "last")


def score(report: EvaluationReport) -> float:
    """The mean over the confirmation's seeds where there was one, else over the selection's."""
    confirmation = report.confirm_return_mean
    return report.return_mean if confirmation is None else confirmation
