"""The bookkeeping of one run: counters, budgets, evaluations, checkpoints and what is shown.

Owned by the driver; both loops call it after every round or tick. It decides when something is
due and writes everything that a run leaves behind; it computes nothing of the training.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qfleet.command_line.console import Console, EpisodeLine, RunStatus
from qfleet.common.config import Config
from qfleet.common.errors import CheckpointError
from qfleet.common.types import (
    EnvironmentSpec,
    EpisodeSummary,
    EvaluationReport,
    EvaluationRequest,
)
from qfleet.fleets.fleet import FleetReport
from qfleet.pictures.artifacts import Artifacts
from qfleet.run.bottleneck import Bottleneck
from qfleet.run.forecast import Forecast
from qfleet.run.solve_tracker import SolveTracker
from qfleet.run.stop_signals import StopSignal
from qfleet.run.transition_accounts import account
from qfleet.run_files import metrics
from qfleet.run_files.checkpoint import next_generation
from qfleet.run_files.metric_rows import metric_row, samples_per_insert
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import Accounting

RECENT_EPISODES = 100
PARAMS_FILE = "params.safetensors"
SESSION_FILE = "session.json"
CONSOLE_PERIOD_S = 0.2


@dataclass
class Totals:
    """Counters over the whole run, resumed parts included."""

    episodes: int = 0
    wall_s: float = 0.0
    """Training time of earlier parts."""
    eval_s: float = 0.0
    produced_base: int = 0
    """Transitions that earlier parts stored and no living actor counts."""
    dropped: int = 0
    lost: int = 0


@dataclass
class Session:
    """One run in progress; `observe` first, then the questions about what is due."""

    config: Config
    spec: EnvironmentSpec
    directory: RunDirectory
    writer: metrics.MetricsWriter
    console: Console
    run_id: str
    stop: StopSignal
    on_evaluation: Callable[[EvaluationReport], None] | None = None
    artifacts: Artifacts | None = None
    """Prepared with the first evaluation: from then on there is something to film."""
    clock: Callable[[], float] = time.monotonic
    totals: Totals = field(default_factory=Totals)
    report: FleetReport | None = None
    incidents: list[str] = field(default_factory=list)
    checkpoint_failures: int = 0
    round_state: Callable[[], dict[str, Any]] = dict
    """The round loop's own state, for the checkpoint."""
    gone_produced: Callable[[], int] = int
    """Transitions numbered by actors that died, as far as they told before."""

    def __post_init__(self) -> None:
        self.tracker = SolveTracker(self.config, self.spec)
        self.bottleneck = Bottleneck()
        self._forecast = Forecast()
        self._recent: collections.deque[EpisodeSummary] = collections.deque(maxlen=RECENT_EPISODES)
        self._started_s = self.clock()
        self._last_row_s = self._last_console_s = self._started_s
        self._row_env_steps = self._row_learner_steps = 0
        self._speeds = (0.0, 0.0)
        self._last_checkpoint_s = self._started_s
        self._evaluated_period = 0
        self._highest_version = 0
        self._next_update: tuple[int, Callable[[], None]] | None = None
        self._generation = next_generation(self.directory.checkpoints_path)

    @property
    def highest_params_version(self) -> int:
        """The newest version that any learner of this run has told of."""
        return self._highest_version

    def begin(self) -> None:
        """Training starts now: budgets of time and speeds count from here."""
        self._started_s = self._last_checkpoint_s = self.clock()
        self._last_row_s = self._last_console_s = self._started_s
        if self.report is not None:
            self._row_env_steps = self.report.env_steps
            self._row_learner_steps = self.report.learner.learner_steps

    def on_next_update(self, call: Callable[[], None]) -> None:
        """Call `call` once, when the learner is seen to have done another update."""
        self._next_update = (self.learner_steps, call)

    # Counters

    @property
    def elapsed_s(self) -> float:
        """Training time of this process."""
        return self.clock() - self._started_s

    @property
    def env_steps(self) -> int:
        """Env steps behind all accepted chunks."""
        return 0 if self.report is None else self.report.env_steps

    @property
    def learner_steps(self) -> int:
        """Updates so far."""
        return 0 if self.report is None else self.report.learner.learner_steps

    def rolled_back(self, report: FleetReport) -> None:
        """The roles went on from a cut: what was stored after it is lost.

        In a new process nothing is known of what came after the cut, and nothing is counted lost.
        """
        produced_before = self.accounting().produced
        stored = sum(s.inserted + s.rejected_transitions for s in report.shards)
        if self.report is not None:
            self.totals.lost = max(0, produced_before - stored)
        counted = sum(a.produced - a.unsent for a in report.actors)
        self.totals.produced_base = stored + self.totals.lost - counted
        self.gone_produced = int
        self.report = report
        period = self.learner_steps // self.config.eval.period_learner_steps
        self._evaluated_period = min(self._evaluated_period, period)
        self._row_env_steps, self._row_learner_steps = self.env_steps, self.learner_steps
        self.bottleneck = Bottleneck()

    def accounting(self) -> Accounting:
        """Where every numbered transition went."""
        if self.report is None:
            return Accounting()
        return account(
            self.report, self.totals.produced_base, self.gone_produced(), self.totals.lost
        )

    def observe(self, report: FleetReport) -> None:
        """Take in the roles' counters and new episodes; write and show what is due."""
        self.report = report
        self._highest_version = max(self._highest_version, report.learner.params_version)
        if self._next_update is not None and self.learner_steps > self._next_update[0]:
            call, self._next_update = self._next_update[1], None
            call()
        for episode in report.episodes:
            self._take_episode(episode)
        for text in report.incidents:
            self.incident(text)
        self.bottleneck.observe(report, self.elapsed_s)
        now_s = self.clock()
        if now_s - self._last_row_s >= self.config.metrics.period_s:
            self.write_row()
        if now_s - self._last_console_s >= CONSOLE_PERIOD_S:
            self._last_console_s = now_s
            status = self.status()
            self.console.update(status)
            forecast = self._forecast.consider(status)
            if forecast is not None:
                self.console.message(forecast)

    def _take_episode(self, episode: EpisodeSummary) -> None:
        self.totals.episodes += 1
        self._recent.append(episode)
        wall_s = self.totals.wall_s + self.elapsed_s
        self.writer.write_episode(episode.episode_return, episode.length_env_steps, wall_s)
        if self.config.learner.updates_per_episode is not None and self.report is not None:
            self.console.episode_line(
                EpisodeLine(
                    self.totals.episodes,
                    episode.episode_return,
                    episode.length_env_steps,
                    episode.epsilon,
                    self.report.env_steps,
                    self.report.learner.learner_steps,
                    self.report.learner.loss,
                )
            )

    def incident(self, text: str) -> None:
        """Something that a user should see: shown once and kept for the summary."""
        if text not in self.incidents:
            self.incidents.append(text)
            self.console.message(text)

    def write_row(self) -> None:
        """One row of metrics.jsonl and TensorBoard."""
        if self.report is None:
            return
        now_s = self.clock()
        span_s = max(1e-9, now_s - self._last_row_s)
        self._speeds = (
            (self.env_steps - self._row_env_steps) / span_s,
            (self.learner_steps - self._row_learner_steps) / span_s,
        )
        self._last_row_s = now_s
        self._row_env_steps, self._row_learner_steps = self.env_steps, self.learner_steps
        self.writer.write(
            metric_row(
                self.report,
                self._recent,
                env_steps_per_s=self._speeds[0],
                learner_steps_per_s=self._speeds[1],
            ),
            env_steps=self.env_steps,
            learner_steps=self.learner_steps,
            wall_s=self.totals.wall_s + self.elapsed_s,
        )

    @property
    def samples_per_insert(self) -> float | None:
        """Transitions drawn per transition stored, over the whole run."""
        return None if self.report is None else samples_per_insert(self.report)

    def status(self) -> RunStatus:
        """This moment for the console."""
        report = self.report
        last = self.tracker.last
        epsilons = [e.epsilon for e in self._recent]
        return RunStatus(
            elapsed_s=self.elapsed_s,
            actors_alive=0 if report is None else len(report.actors),
            actors_wanted=int(self.config.actors.count),
            env_steps=self.env_steps,
            env_steps_per_s=self._speeds[0],
            learner_steps=self.learner_steps,
            learner_steps_per_s=self._speeds[1],
            replay_size=0 if report is None else sum(s.size for s in report.shards),
            replay_capacity=self.config.replay.capacity,
            samples_per_insert=self.samples_per_insert,
            epsilon_min=min(epsilons, default=None),
            epsilon_max=max(epsilons, default=None),
            rollout_return_mean=(
                sum(e.episode_return for e in self._recent) / len(self._recent)
                if self._recent
                else None
            ),
            eval_return_mean=None if last is None else last.return_mean,
            limited_by=self.bottleneck.verdict,
            budget_fraction=self.budget_fraction(),
        )

    # Budgets

    def _budgets(self) -> dict[str, tuple[float, float | None]]:
        run = self.config.run
        return {
            "max_env_steps": (self.env_steps, run.max_env_steps),
            "max_learner_steps": (self.learner_steps, run.max_learner_steps),
            "max_episodes": (self.totals.episodes, run.max_episodes),
            "max_wall_s": (self.elapsed_s, run.max_wall_s),
        }

    def budget_fraction(self) -> float | None:
        """Used part of the budget nearest to its end."""
        parts = [used / limit for used, limit in self._budgets().values() if limit is not None]
        return max(parts, default=None)

    def stop_reason(self) -> str | None:
        """Why to stop now: a signal, `solved`, or the name of a spent budget."""
        if self.stop.name is not None:
            return self.stop.name
        if self.tracker.confirmed is not None and self.config.eval.stop_when_solved:
            return "solved"
        for name, (used, limit) in self._budgets().items():
            if limit is not None and used >= limit:
                return name
        return None

    def blocks_left(self, updates_per_block: int) -> int | None:
        """Blocks until the update budget; None without one."""
        limit = self.config.run.max_learner_steps
        return None if limit is None else max(0, (limit - self.learner_steps) // updates_per_block)

    # Evaluation

    def evaluation_due(self) -> bool:
        """Whether an evaluation period has ended since the last evaluation."""
        return self.learner_steps // self.config.eval.period_learner_steps > self._evaluated_period

    def evaluation_request(self) -> EvaluationRequest:
        """The next evaluation, on seeds of its own."""
        self._evaluated_period = self.learner_steps // self.config.eval.period_learner_steps
        return self.tracker.request()

    def record_evaluation(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """Take in an evaluation; keep its parameters as `best/` when they are."""
        self._highest_version = max(self._highest_version, report.params_version)
        verdict = self.tracker.record(report)
        self.write_evaluation_row(report)
        if verdict.is_best:
            self.write_best(report, params())
        if self.on_evaluation is not None:
            self.on_evaluation(report)

    def write_evaluation_row(self, report: EvaluationReport) -> None:
        """The evaluation as a row at its own env step."""
        self.writer.write(
            {metrics.EVAL_RETURN_MEAN: report.return_mean},
            env_steps=report.env_steps,
            learner_steps=report.learner_step,
            wall_s=self.totals.wall_s + self.elapsed_s,
        )

    def write_best(self, report: EvaluationReport, params: bytes) -> None:
        """Commit `params` as `best/`."""
        fields = {name: value for name, value in report._asdict().items() if value is not None}
        self.directory.write_best(
            learner_step=report.learner_step,
            generation=self.tracker.evaluations,
            files={PARAMS_FILE: params},
            manifest={"run_id": self.run_id, "evaluation": fields},
        )
        if self.artifacts is not None:
            self.artifacts.prepare()

    # Checkpoints

    def checkpoint_due(self) -> bool:
        """Whether the checkpoint period has passed."""
        return self.clock() - self._last_checkpoint_s >= self.config.run.checkpoint_period_s

    def save_checkpoint(self, files: dict[str, bytes], params: bytes, learner_step: int) -> None:
        """Commit one cut of all roles; a failure is counted and shown, training goes on."""
        self._last_checkpoint_s = self.clock()
        state = json.dumps(self.capture()).encode()
        try:
            self.directory.write_checkpoint(
                learner_step=learner_step,
                generation=self._generation,
                files={**files, PARAMS_FILE: params, SESSION_FILE: state},
                manifest={
                    "run_id": self.run_id,
                    "env_steps": self.env_steps,
                    "schedule": self.config.effective_schedule,
                    "replay": self.config.run.checkpoint_replay,
                },
                keep=self.config.run.keep_checkpoints,
            )
        except (CheckpointError, OSError) as error:
            self.checkpoint_failures += 1
            self.incident(f"checkpoint not written, training goes on: {error}")
        self._generation += 1

    def capture(self) -> dict[str, Any]:
        """What a resumed run needs of this bookkeeping."""
        return {
            "run_id": self.run_id,
            "episodes": self.totals.episodes,
            "wall_s": self.totals.wall_s + self.elapsed_s,
            "eval_s": self.totals.eval_s,
            "dropped": self.totals.dropped,
            "lost": self.totals.lost,
            "produced_base": self.totals.produced_base,
            "evaluated_period": self._evaluated_period,
            "tracker": self.tracker.capture(),
            "round": self.round_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `capture`."""
        self.totals = Totals(
            episodes=state["episodes"],
            wall_s=state["wall_s"],
            eval_s=state["eval_s"],
            produced_base=state["produced_base"],
            dropped=state["dropped"],
            lost=state["lost"],
        )
        self._evaluated_period = state["evaluated_period"]
        self.tracker.restore(state["tracker"])
