"""What a run shows of itself: rows of metrics, the console, incidents; called by the session."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qfleet.common.reports import BlockStats
from qfleet.common.types import EpisodeSummary
from qfleet.run.tables.fleet_tables import fleet_tables
from qfleet.run.tables.role_rows import RoleRates
from qfleet.run_files.metrics import MetricsWriter
from qfleet.run_files.summary import RoleRow
from qfleet.session.bottleneck import Bottleneck
from qfleet.session.budgets import Budgets
from qfleet.session.counters import Counters
from qfleet.session.forecast import Forecast
from qfleet.session.metric_rows import block_row, metric_row
from qfleet.session.solve_tracker import SolveTracker
from qfleet.settings.config import Config
from qfleet.terminal.console import Console, EpisodeLine, RunStatus

RECENT_EPISODES = 100
CONSOLE_PERIOD_S = 0.2


@dataclass
class Progress:
    """Rows and lines at their own periods, from the counters and the recent episodes."""

    config: Config
    counters: Counters
    budgets: Budgets
    tracker: SolveTracker
    writer: MetricsWriter
    console: Console
    incidents: list[str] = field(default_factory=list)
    tell_row: Callable[[Mapping[str, float], Sequence[RoleRow]], None] = lambda row, roles: None
    """Called with the values of each row and what every role does."""

    def __post_init__(self) -> None:
        self.bottleneck = Bottleneck()
        self._rates = RoleRates()
        self._forecast = Forecast()
        self._recent: collections.deque[EpisodeSummary] = collections.deque(maxlen=RECENT_EPISODES)
        self._speeds = (0.0, 0.0)
        self._last_row_s = self._last_console_s = self.counters.clock()
        self._row_env_steps = self._row_learner_steps = 0

    def begin(self) -> None:
        """Training starts now: speeds count from here."""
        self._last_row_s = self._last_console_s = self.counters.clock()
        self._speeds_count_from_here()

    def _speeds_count_from_here(self) -> None:
        self._row_env_steps = self.counters.env_steps
        self._row_learner_steps = self.counters.learner_steps

    def rolled_back(self) -> None:
        """The counters have gone back to a cut."""
        self._speeds_count_from_here()
        self.writer.forget_beyond(self.counters.env_steps)
        self.bottleneck = Bottleneck()

    def observe(self) -> None:
        """Write and show what is new in the counters and what is due."""
        report, now_s = self.counters.report, self.counters.clock()
        assert report is not None, "the session observes first"
        for episode in report.episodes:
            self._take_episode(episode)
        for text in report.incidents:
            self.incident(text)
        self.bottleneck.observe(report, self.counters.elapsed_s)
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
        counters = self.counters
        counters.totals.episodes += 1
        self._recent.append(episode)
        self.writer.write_episode(episode.episode_return, episode.length_env_steps, counters.wall_s)
        if self.config.learner.updates_per_episode is not None and counters.report is not None:
            self.console.episode_line(
                EpisodeLine(
                    counters.totals.episodes,
                    episode.episode_return,
                    episode.length_env_steps,
                    episode.epsilon,
                    counters.env_steps,
                    counters.learner_steps,
                    counters.report.learner.loss,
                )
            )

    def incident(self, text: str) -> None:
        """Something that a user should see: shown once and kept for the summary."""
        if text not in self.incidents:
            self.incidents.append(text)
            self.console.message(text)

    def write_row(self) -> None:
        """One row of metrics.jsonl and TensorBoard."""
        counters, now_s = self.counters, self.counters.clock()
        if counters.report is None:
            return
        span_s = max(1e-9, now_s - self._last_row_s)
        self._speeds = (
            (counters.env_steps - self._row_env_steps) / span_s,
            (counters.learner_steps - self._row_learner_steps) / span_s,
        )
        self._last_row_s = now_s
        self._speeds_count_from_here()
        row = metric_row(
            counters.report,
            self._recent,
            env_steps_per_s=self._speeds[0],
            learner_steps_per_s=self._speeds[1],
            has_ladder=self.config.actors.epsilon_schedule == "ladder",
        )
        roles = self._rates.rows(counters.report, now_s)
        self.tell_row(row, roles)
        self.writer.write(
            row,
            env_steps=counters.env_steps,
            learner_steps=counters.learner_steps,
            wall_s=counters.wall_s,
        )
        tables = fleet_tables(counters.report)
        self.writer.write_fleet(tables.model_copy(update={"roles": roles}))

    def write_last_blocks(self, last_step: float = math.inf) -> None:
        """A row for each block of a learner that diverged, from the last row there is on.

        That is what the divergence looked like: it may have taken less than one metrics period.
        """
        counters = self.counters
        blocks = () if counters.report is None else counters.report.learner.last_blocks
        for block in (BlockStats(int(steps), *means) for steps, *means in blocks):
            if self._row_learner_steps < block.learner_steps <= last_step:
                self._row_learner_steps = block.learner_steps
                self.writer.write(
                    block_row(block),
                    env_steps=counters.env_steps,
                    learner_steps=block.learner_steps,
                    wall_s=counters.wall_s,
                )

    def status(self) -> RunStatus:
        """This moment for the console."""
        counters, report = self.counters, self.counters.report
        last = self.tracker.last
        epsilons = [e.epsilon for e in self._recent]
        returns = [e.episode_return for e in self._recent]
        used = self.budgets.fraction()
        return RunStatus(
            elapsed_s=counters.elapsed_s,
            actors_alive=0 if report is None else len(report.actors),
            actors_wanted=counters.actors_wanted,
            env_steps=counters.env_steps,
            env_steps_per_s=self._speeds[0],
            learner_steps=counters.learner_steps,
            learner_steps_per_s=self._speeds[1],
            replay_size=0 if report is None else sum(s.size for s in report.shards),
            replay_capacity=self.config.replay.capacity,
            samples_per_insert=counters.samples_per_insert,
            epsilon_min=min(epsilons, default=None),
            epsilon_max=max(epsilons, default=None),
            rollout_return_mean=sum(returns) / len(returns) if returns else None,
            eval_return_mean=None if last is None else last.return_mean,
            limited_by=self.bottleneck.verdict,
            budget_fraction=used,
            eta_s=self._forecast.left_s(counters.elapsed_s, used, counters.learner_steps),
        )
