"""The bookkeeping of one run: counters, budgets, evaluations, checkpoints and what is shown.

Owned by the driver; both loops call it after every round or tick. It decides when something is
due and writes everything that a run leaves behind; it computes nothing of the training. Each part
has a file of its own; here they are put together and asked in the right order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from qfleet.common.capture_stream import Streams
from qfleet.common.episode_limits import cuts_episodes, episode_limit
from qfleet.common.errors import CheckpointError
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.types import EnvironmentSpec
from qfleet.fleets.fleet import FleetReport
from qfleet.pictures.artifacts import Artifacts
from qfleet.run.error_texts import write_error_text
from qfleet.run.stop_signals import StopSignal
from qfleet.run_files.durable import DiskWatch
from qfleet.run_files.live.scale_request import take_scale_request, withdraw_scale_request
from qfleet.run_files.metrics import MetricsWriter
from qfleet.run_files.resume import find_point
from qfleet.run_files.run_directory import RunDirectory
from qfleet.session.budgets import Budgets
from qfleet.session.checkpoints import Checkpoints
from qfleet.session.counters import Counters
from qfleet.session.evaluations import Evaluations
from qfleet.session.progress import Progress
from qfleet.settings.config import Config
from qfleet.terminal.console import Console, RunStatus

ON_EVALUATION = "on_evaluation"
"""Why a run stopped whose caller said False."""


@dataclass
class Session:
    """One run in progress; `observe` first, then the questions about what is due."""

    config: Config
    spec: EnvironmentSpec
    directory: RunDirectory
    writer: MetricsWriter
    console: Console
    run_id: str
    stop: StopSignal
    process: int = 0
    """Which of the processes that have driven this run, from 0."""
    on_evaluation: InitVar[Callable[[EvaluationReport], object] | None] = None
    artifacts: Artifacts | None = None
    watch: DiskWatch = field(default_factory=DiskWatch)
    """Of whatever the run writes."""
    clock: Callable[[], float] = time.monotonic
    round_state: Callable[[], dict[str, Any]] = dict
    """The round loop's own state, for the checkpoint."""

    def __post_init__(self, on_evaluation: Callable[[EvaluationReport], object] | None) -> None:
        self.counters = Counters(self.clock)
        self.counters.actors_wanted = int(self.config.actors.count)
        withdraw_scale_request(self.directory.path)  # of a process before
        self.budgets = Budgets(self.config.run, self.counters)
        self.evaluations = Evaluations(
            self.config,
            self.spec,
            self.directory,
            self.writer,
            self.counters,
            self.run_id,
            self.watch,
            on_evaluation,
            self.artifacts,
        )
        self.progress = Progress(
            self.config,
            self.counters,
            self.budgets,
            self.evaluations.tracker,
            self.writer,
            self.console,
        )
        self.checkpoints = Checkpoints(
            self.config,
            self.directory,
            self.counters,
            self.run_id,
            self.capture,
            self.watch,
        )
        self.watch.listen(self.progress.incident)
        self._next_update: tuple[int, Callable[[], None]] | None = None

    def begin(self) -> None:
        """Training starts now: budgets of time and speeds count from here."""
        self.counters.begin()
        self.progress.begin()
        self.checkpoints.begin()

    def on_next_update(self, call: Callable[[], None]) -> None:
        """Call `call` once, when the learner is seen to have done another update."""
        self._next_update = (self.learner_steps, call)

    @property
    def report(self) -> FleetReport | None:
        """The newest counters of all roles."""
        return self.counters.report

    @property
    def max_episode_steps(self) -> int:
        """Longer episodes are cut."""
        wanted = self.config.eval.max_episode_steps
        return episode_limit(self.spec) if wanted == "auto" else wanted

    @property
    def learner_steps(self) -> int:
        """Updates so far."""
        return self.counters.learner_steps

    def observe(self, report: FleetReport) -> None:
        """Take in the roles' counters and new episodes; write and show what is due."""
        self.counters.observe(report)
        if self._next_update is not None and self.learner_steps > self._next_update[0]:
            call, self._next_update = self._next_update[1], None
            call()
        self.progress.observe()
        self._tell_of_cuts(
            episode.length_env_steps >= self.max_episode_steps and not episode.terminated
            for episode in report.episodes
        )

    def _tell_of_cuts(self, were_cut: Iterable[bool]) -> None:
        """Say once that episodes end by our limit, which is part of what is learned and scored."""
        limit = self.max_episode_steps
        if any(were_cut) and cuts_episodes(self.spec, limit):
            self.incident(
                f"episodes were cut after {limit:,} steps, before {self.spec.env_id} ended them: "
                "their returns are those of so many steps (eval.max_episode_steps)"
            )

    def rolled_back(self, report: FleetReport) -> None:
        """The roles went on from a cut: what was stored after it is lost."""
        self.counters.rolled_back(report)
        self.evaluations.rolled_back()
        self.progress.rolled_back()

    def scale_request(self) -> int | None:
        """How many actors somebody asks for (`qfleet scale`), once; None when nobody does."""
        wanted = take_scale_request(self.directory.path)
        if wanted is not None and wanted < (least := self.config.actors.min_count):
            self.incident(f"{wanted} actors were asked for: at least {least} are needed")
            return None
        self.counters.actors_wanted = wanted or self.counters.actors_wanted
        return wanted

    def newest_cut(self) -> Mapping[str, memoryview] | None:
        """The roles' files of the last checkpoint; None without a usable one."""
        try:
            point = find_point(self.directory)
        except CheckpointError as error:
            self.incident(f"{error}: it is left out")
            return None
        return None if point is None else point.role_files

    def shard_rolled_back(self, slots: list[int]) -> None:
        """What these slots had stored since the last cut is lost with their shard."""
        self.counters.accounts.shard_rolled_back(slots)

    def stop_reason(self) -> str | None:
        """Why to stop now: a signal, `on_evaluation`, `solved`, or the name of a spent budget."""
        if self.stop.name is not None:
            return self.stop.name
        if self.evaluations.is_stop_asked:
            return ON_EVALUATION
        confirmed = self.evaluations.tracker.confirmed
        if confirmed is not None and self.config.eval.stop_when_solved:
            return "solved"
        return self.budgets.spent()

    def blocks_left(self, updates_per_block: int) -> int | None:
        """Blocks until the update budget; None without one."""
        return self.budgets.blocks_left(updates_per_block)

    def evaluation_due(self) -> bool:
        """Whether an evaluation period has ended since the last evaluation."""
        return self.evaluations.due()

    def evaluation_request(self) -> EvaluationRequest:
        """The next evaluation, on seeds of its own."""
        return self.evaluations.request()

    def record_evaluation(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """Take in an evaluation; keep its parameters as `best/` when they are."""
        self._tell_of_cuts([report.cut_episodes + report.confirm_cut_episodes > 0])
        self.evaluations.record(report, params)

    def checkpoint_due(self) -> bool:
        """Whether the checkpoint period has passed."""
        return self.checkpoints.due()

    def save_checkpoint(self, files: Streams, params: bytes, learner_step: int) -> None:
        """Commit one cut of all roles; a failure is counted and shown, training goes on."""
        self.checkpoints.save(files, params, learner_step)
        self.evaluations.write_best()

    def incident(self, text: str, whole_text: str = "") -> None:
        """Something that a user should see: shown once and kept for the summary.

        `whole_text`, a traceback for instance, goes into a file of the run directory.
        """
        path = write_error_text(self.directory.path, whole_text) if whole_text else None
        self.progress.incident(f"{text}; the whole text is in {path}" if path else text)

    def write_row(self) -> None:
        """One row of metrics.jsonl and TensorBoard."""
        self.progress.write_row()

    def status(self) -> RunStatus:
        """This moment for the console."""
        return self.progress.status()

    def capture(self) -> dict[str, Any]:
        """What a resumed run needs of this bookkeeping."""
        return {
            "run_id": self.run_id,
            "process": self.process,
            **self.counters.capture(),
            **self.evaluations.capture(),
            "round": self.round_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self.counters.restore(state)
        self.evaluations.restore(state)
