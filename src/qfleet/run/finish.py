"""The end of a run: final score, video and curve, summary.json.

Called by `train` on every exit, also after an error.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Literal, NamedTuple

from qfleet.api import load_policy, play_episodes
from qfleet.common.atari import play_note
from qfleet.common.errors import NonFiniteError, QfleetError
from qfleet.common.reports import EvaluationReport
from qfleet.common.seeding import seed_int
from qfleet.run.learner_path import reason_of
from qfleet.run.outcome import Outcome
from qfleet.run.phases import ARTIFACTS, FINAL_SCORE
from qfleet.run.tables.fleet_tables import fleet_tables
from qfleet.run_files.find_runs import SUMMARY_FILE
from qfleet.run_files.run_directory import environment_report
from qfleet.run_files.summary import FleetTables, RunSummary, write_summary
from qfleet.session.session import Session

_ARTIFACTS_S, _ARTIFACTS_AFTER_A_SIGNAL_S = 120.0, 4.0


def finish(session: Session, outcome: Outcome) -> RunSummary:
    """Write everything that comes last and return the summary."""
    score = _score(session, outcome)
    if session.artifacts is not None:
        outcome.phases.enter(ARTIFACTS)
        if isinstance(outcome.error, NonFiniteError) and session.directory.best_path.is_dir():
            session.artifacts.film()  # what it could do before it diverged
        if session.counters.totals.episodes:
            session.artifacts.plot()  # begun already, unless an error ended the loop
        is_urgent = session.stop.name is not None
        timeout_s = _ARTIFACTS_AFTER_A_SIGNAL_S if is_urgent else _ARTIFACTS_S
        session.artifacts.wait(session.incident, timeout_s)
    summary = _summary(session, outcome, score, outcome.phases.seconds())
    _write(summary, session)
    return summary


def _write(summary: RunSummary, session: Session) -> None:
    """Last of all, into room that was kept for it; shown when even that has gone."""
    session.directory.release_room()
    path = session.directory.path
    if not session.watch.attempt(SUMMARY_FILE, lambda: write_summary(summary, path)):
        with contextlib.suppress(OSError):
            print(f"{SUMMARY_FILE} would hold:\n{summary.model_dump_json()}", file=sys.stderr)


class _Score(NamedTuple):
    """What the parameters in `best/` are worth, and how that is known."""

    mean: float
    std: float
    episodes: int
    seeds: Literal["fresh", "selection"]
    """`selection`: over the episodes for which these parameters were chosen; biased upwards."""
    cut_episodes: int
    """Of `episodes`, how many `eval.max_episode_steps` ended."""


def _score(session: Session, outcome: Outcome) -> _Score | None:
    """The score of `best/`, over seeds that selected nothing where there are such.

    A solved run reports its confirmation. An unsolved one that ended by itself is scored now; after
    a signal or an error the evaluation that chose `best/` stands, because nobody wants to wait.
    """
    tracker = session.evaluations.tracker
    confirmed = tracker.confirmed
    if confirmed is not None and confirmed.confirm_return_mean is not None:
        return _confirmation(confirmed, "fresh")
    ended_by_itself = outcome.error is None and outcome.crash is None and session.stop.name is None
    if ended_by_itself and session.directory.best_path.is_dir():
        return _fresh_score(session, outcome)
    best = tracker.best
    if best is None:
        return None
    if best.confirm_return_mean is not None:
        return _confirmation(best, "selection")
    return _Score(best.return_mean, best.return_std, best.episodes, "selection", best.cut_episodes)


def _confirmation(report: EvaluationReport, seeds: Literal["fresh", "selection"]) -> _Score:
    return _Score(
        report.confirm_return_mean or 0.0,
        report.confirm_return_std or 0.0,
        report.confirm_episodes,
        seeds,
        report.confirm_cut_episodes,
    )


def _fresh_score(session: Session, outcome: Outcome) -> _Score | None:
    config = session.config
    outcome.phases.enter(FINAL_SCORE)
    try:
        returns, _, n_cut = play_episodes(
            load_policy(session.directory.path, allow_code=True),
            config.env,
            config.eval.confirm_episodes,
            seed_int(config.seed, "eval.final"),
            max_episode_steps=session.max_episode_steps,
        )
    except QfleetError as error:
        session.incident(f"the best parameters could not be scored: {error}")
        return None
    return _Score(float(returns.mean()), float(returns.std()), len(returns), "fresh", n_cut)


def _status(
    session: Session, outcome: Outcome
) -> Literal["solved", "finished", "stopped", "failed"]:
    if outcome.error is not None or outcome.crash is not None:
        return "failed"
    if session.stop.name is not None or session.evaluations.is_stop_asked:
        return "stopped"  # also when it was solved before
    return "solved" if session.evaluations.tracker.confirmed is not None else "finished"


def _exit_code(session: Session, outcome: Outcome) -> int:
    if outcome.error is not None:
        return outcome.error.exit_code
    if outcome.crash is not None:
        return 1
    return session.stop.exit_code


def _summary(
    session: Session,
    outcome: Outcome,
    score: _Score | None,
    phases_s: dict[str, float],
) -> RunSummary:
    config, report = session.config, session.report
    confirmed = session.evaluations.tracker.confirmed
    learner = None if report is None else report.learner
    path = outcome.learner_path.path if report is None else report.learner_path
    train_s = max(outcome.train_s, 1e-9)
    tables = FleetTables() if report is None else fleet_tables(report)
    resumable = any(session.directory.checkpoints_path.glob("ckpt-*"))
    counts: dict[str, Any] = {
        "env_steps": session.counters.env_steps,
        "learner_steps": session.learner_steps,
        "target_syncs": 0 if learner is None else learner.target_syncs,
        "params_version": 0 if learner is None else learner.params_version,
        "env_steps_per_s": session.counters.env_steps / train_s,
        "learner_steps_per_s": session.learner_steps / train_s,
        "samples_per_insert": session.counters.samples_per_insert,
    }
    return RunSummary(
        status=_status(session, outcome),
        exit_code=_exit_code(session, outcome),
        resumable=resumable,
        env_id=session.spec.env_id,
        preset=config.preset_name,
        runtime=config.runtime,
        schedule=config.effective_schedule,
        seed=config.seed,
        solved=confirmed is not None,
        solved_at_env_step=session.evaluations.tracker.solved_at_env_step,
        eval_return_mean=None if score is None else score.mean,
        eval_return_std=None if score is None else score.std,
        eval_episodes=0 if score is None else score.episodes,
        eval_cut_episodes=0 if score is None else score.cut_episodes,
        max_episode_steps=session.max_episode_steps,
        play=play_note(config.env),
        actors=session.counters.actors_wanted,
        replay_shards=config.replay.shards,
        startup_s=outcome.startup_s,
        train_s=outcome.train_s,
        eval_s=session.counters.totals.eval_s,
        wall_s=sum(phases_s.values()),
        limited_by=session.progress.bottleneck.verdict,
        params_sha256=outcome.params_sha256,
        accounting=session.counters.accounting(),
        shards=tables.shards,
        slots=tables.slots,
        device=outcome.device,
        learner_path=path,
        precision=config.learner.precision,
        learner_path_reason=reason_of(path, outcome.learner_path),
        versions=environment_report(),
        run_id=session.run_id,
        run_dir=str(session.directory.path),
        resume_kind=outcome.resume_kind,
        stop_reason=outcome.reason,
        role_restarts=outcome.role_restarts,
        incidents=session.progress.incidents,
        failed_writes=session.watch.failures,
        phases_s=phases_s,
        eval_seeds=None if score is None else score.seeds,
        budgets=session.budgets.in_force(),
        **counts,
    )
