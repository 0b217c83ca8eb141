"""Which evaluation is due, what its result means, and what is kept of it; called by the session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.types import EnvironmentSpec
from qfleet.pictures.artifacts import Artifacts
from qfleet.run_files.checkpoint import PARAMS_FILE
from qfleet.run_files.durable import DiskWatch
from qfleet.run_files.metrics import EVAL_RETURN_MEAN, MetricsWriter
from qfleet.run_files.run_directory import RunDirectory
from qfleet.session.counters import Counters
from qfleet.session.solve_tracker import SolveTracker
from qfleet.settings.config import Config


@dataclass
class Evaluations:
    """The periodic evaluations of a run, from the request to `best/`."""

    config: Config
    spec: EnvironmentSpec
    directory: RunDirectory
    writer: MetricsWriter
    counters: Counters
    run_id: str
    watch: DiskWatch
    on_evaluation: Callable[[EvaluationReport], object] | None = None
    """Called with each; False asks the run to stop."""
    artifacts: Artifacts | None = None
    """Prepared with the first evaluation: from then on there is something to film."""

    def __post_init__(self) -> None:
        self.tracker = SolveTracker(self.config, self.spec)
        self._evaluated_period = 0
        self._best: tuple[EvaluationReport, bytes] | None = None
        self.is_stop_asked = False

    def due(self) -> bool:
        """Whether an evaluation period has ended since the last evaluation."""
        return self._period > self._evaluated_period

    @property
    def _period(self) -> int:
        return self.counters.learner_steps // self.config.eval.period_learner_steps

    def request(self) -> EvaluationRequest:
        """The next evaluation, on seeds of its own."""
        self._evaluated_period = self._period
        return self.tracker.request()

    def rolled_back(self) -> None:
        """The learner went on from an earlier step: its next period is evaluated again."""
        self._evaluated_period = min(self._evaluated_period, self._period)

    def record(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """Take in an evaluation; keep its parameters as `best/` when they are."""
        self.counters.saw_params_version(report.params_version)
        verdict = self.tracker.record(report)
        self._write_row(report)
        if verdict.is_best:
            self._best = (report, params())
            self.write_best()
        answer = None if self.on_evaluation is None else self.on_evaluation(report)
        if isinstance(answer, bool | np.bool_) and not answer:
            self.is_stop_asked = True

    def _write_row(self, report: EvaluationReport) -> None:
        """The evaluation as a row at its own env step."""
        self.writer.write(
            {EVAL_RETURN_MEAN: report.return_mean},
            env_steps=report.env_steps,
            learner_steps=report.learner_step,
            wall_s=self.counters.wall_s,
        )

    def write_best(self) -> None:
        """Commit what `best/` should hold, if it does not hold it yet: now, or when there is room.

        A report and its parameters wait in memory until then.
        """
        if self._best is None:
            return
        report, params = self._best
        if self.watch.attempt("best/", lambda: self._commit(report, params)):
            self._best = None
            if self.artifacts is not None:
                self.artifacts.prepare()

    def _commit(self, report: EvaluationReport, params: bytes) -> None:
        fields = {name: value for name, value in report._asdict().items() if value is not None}
        self.directory.write_best(
            learner_step=report.learner_step,
            generation=self.tracker.evaluations,
            files={PARAMS_FILE: [params]},
            manifest={"run_id": self.run_id, "evaluation": fields},
        )

    def capture(self) -> dict[str, Any]:
        """What a resumed run needs of them."""
        return {"evaluated_period": self._evaluated_period, "tracker": self.tracker.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self._evaluated_period = state["evaluated_period"]
        self.tracker.restore(state["tracker"])
