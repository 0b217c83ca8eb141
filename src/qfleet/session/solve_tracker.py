"""When a run counts as solved, and which evaluated parameters are its best.

Pure; called by the session. A periodic evaluation that reaches the threshold is confirmed on
disjoint seeds, and only the confirmation is reported: the evaluation that selects a moment of
training is biased upwards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from qfleet.common.seeding import seed_int
from qfleet.common.types import EnvironmentSpec, EvaluationReport, EvaluationRequest
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
    best_return_mean: float | None = None
    best_learner_step: int = 0
    confirmed: EvaluationReport | None = None
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
        return EvaluationRequest(
            evaluation.episodes,
            seed_int(seed, "eval.select", self.evaluations),
            None if self.confirmed else self.threshold,
            evaluation.confirm_episodes,
            seed_int(seed, "eval.confirm", self.evaluations),
        )

    def record(self, report: EvaluationReport) -> Verdict:
        """Take in a report; a confirmed one stays the best whatever comes after it."""
        self.last = report
        confirmation = report.confirm_return_mean
        threshold = self.threshold
        is_solved = (
            self.confirmed is None
            and threshold is not None
            and confirmation is not None
            and confirmation >= threshold
        )
        score = report.return_mean if confirmation is None else confirmation
        is_best = is_solved or (
            self.confirmed is None
            and (self.best_return_mean is None or score > self.best_return_mean)
        )
        if is_best:
            self.best_return_mean, self.best_learner_step = score, report.learner_step
        if is_solved:
            self.confirmed = report
        return Verdict(is_best, is_solved)

    def capture(self) -> dict[str, Any]:
        """State for a checkpoint."""
        state = asdict(self)
        del state["config"], state["spec"]
        state["confirmed"] = None if self.confirmed is None else list(self.confirmed)
        state["last"] = None if self.last is None else list(self.last)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        for name in ("evaluations", "best_return_mean", "best_learner_step"):
            setattr(self, name, state[name])
        for name in ("confirmed", "last"):
            value = state[name]
            setattr(self, name, None if value is None else EvaluationReport(*value))
