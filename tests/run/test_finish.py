"""How a run ends: status, exit code and the accounts, as tables."""

from __future__ import annotations

import time

import pytest

from qfleet.common.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ResourcesError,
    RoleLostError,
    WaitTimeoutError,
)
from qfleet.common.reports import EvaluationReport, LearnerStats
from qfleet.common.types import EnvironmentSpec, ReplayStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run.finish import finish
from qfleet.run.outcome import Outcome
from qfleet.run.stop_signals import StopSignal
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import Accounting, read_summary
from qfleet.session.session import Session
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
SIGHUP, SIGINT, SIGTERM = 1, 2, 15


class Silent:
    def message(self, text):
        pass

    def update(self, status):
        pass

    def write(self, *_, **__):
        pass


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("cartpole", [], {"actors.count": 1, "runtime": "local"})
    config = resolve_config(config, None, cpus=2, gpus=0)
    with RunDirectory.create(config, str(tmp_path / "run")) as directory:
        yield Session(config, SPEC, directory, Silent(), Silent(), run_id="r1", stop=StopSignal())


def shard(size, evicted=0, rejected=0, sampled=0, env_steps=0):
    inserted = size + evicted
    return ReplayStats(
        size, inserted, sampled, evicted, float(size), 0, rejected, 0, 0, env_steps, 0
    )


def report(shards, actors, learner_steps=0):
    learner = LearnerStats(learner_steps, 9, 4, 0.5, 1.0, 0.1, 2.0)
    return FleetReport(shards=shards, learner=learner, actors=actors)


def actor(produced, slot=0):
    return ActorReport(slot, produced, produced, 0, 0)


def ended(**fields):
    return Outcome(started_s=time.monotonic() - 3.0, **fields)


def solved(session):
    session.evaluations.tracker.record(
        EvaluationReport(9, 500, 1600, 490.0, 5.0, 20, 480.5, 12.25, 100)
    )


@pytest.mark.parametrize(
    ("outcome", "signal", "is_solved", "status", "exit_code"),
    [
        (ended(), None, False, "finished", 0),
        (ended(), None, True, "solved", 0),
        (ended(), SIGHUP, False, "stopped", 129),
        (ended(), SIGINT, False, "stopped", 130),
        (ended(), SIGTERM, False, "stopped", 143),
        (ended(error=ConfigError("x")), None, False, "failed", 2),
        (ended(error=ResourcesError("x")), None, False, "failed", 2),
        (ended(error=CheckpointError("x")), None, False, "failed", 3),
        (ended(error=NonFiniteError("x")), None, False, "failed", 4),
        (ended(error=RoleLostError("x")), None, True, "failed", 5),
        (ended(error=WaitTimeoutError("x")), None, False, "failed", 5),
        # What went wrong tells more than the signal that came while it did.
        (ended(error=RoleLostError("x")), SIGINT, False, "failed", 5),
        (ended(crash=KeyError("bug")), None, False, "failed", 1),
        (ended(crash=KeyError("bug")), SIGTERM, False, "failed", 1),
    ],
)
def test_finish_status_and_exit_code(session, outcome, signal, is_solved, status, exit_code):
    if signal is not None:
        session.stop.note(signal, None)
    if is_solved:
        solved(session)
    summary = finish(session, outcome)
    assert (summary.status, summary.exit_code) == (status, exit_code)
    assert read_summary(session.directory.path) == summary


def test_finish_without_any_report_writes_a_whole_summary(session):
    summary = finish(session, ended(reason="it never started", error=RoleLostError("x")))
    assert (summary.env_steps, summary.learner_steps, summary.resumable) == (0, 0, False)
    assert summary.samples_per_insert is None
    assert summary.eval_return_mean is None
    assert summary.accounting == Accounting()
    assert summary.stop_reason == "it never started"
    assert summary.limited_by == "unknown"


def test_finish_takes_counters_and_times_from_the_run(session):
    session.counters.report = report(
        [shard(600, 400, sampled=8000, env_steps=1100)], [actor(1000)], 250
    )
    session.counters.totals.eval_s = 1.5
    session.save_checkpoint({}, b"params", 150)
    outcome = ended(train_s=2.0, startup_s=0.5, params_sha256="ab")
    outcome.phases.enter("training")
    summary = finish(session, outcome)
    assert (summary.env_steps, summary.learner_steps) == (1100, 250)
    assert (summary.env_steps_per_s, summary.learner_steps_per_s) == (550.0, 125.0)
    assert (summary.target_syncs, summary.params_version) == (4, 9)
    assert summary.samples_per_insert == 8.0
    assert summary.resumable is True
    assert summary.params_sha256 == "ab"
    assert list(summary.phases_s) == ["imports", "training"]
    assert sum(summary.phases_s.values()) == summary.wall_s
    assert summary.run_dir == str(session.directory.path)
    assert 3.0 <= summary.wall_s < 10.0


def test_finish_reports_the_confirmation_not_the_selection(session):
    solved(session)
    summary = finish(session, ended())
    assert (summary.eval_return_mean, summary.eval_return_std) == (480.5, 12.25)
    assert summary.eval_episodes == 100
    assert (summary.solved, summary.solved_at_env_step) == (True, 1600)


def evaluated(session, *means):
    for step, mean in enumerate(means, start=1):
        session.evaluations.tracker.record(
            EvaluationReport(9, 500 * step, 1600 * step, mean, 5.0, 20, None, None, 0)
        )


@pytest.mark.parametrize("outcome", [ended(), ended(error=NonFiniteError("x"))])
def test_finish_after_a_signal_or_an_error_reports_the_best_and_how_it_was_chosen(session, outcome):
    evaluated(session, 44.0, 500.0, 19.3)
    session.stop.note(SIGINT, None)

    summary = finish(session, outcome)

    assert (summary.eval_return_mean, summary.eval_episodes) == (500.0, 20)
    assert summary.eval_seeds == "selection"
    assert summary.solved is False


def test_finish_after_a_confirmation_that_failed_reports_that_one(session):
    session.evaluations.tracker.record(EvaluationReport(9, 5, 16, 490.0, 5.0, 20, 470.0, 2.5, 100))
    session.stop.note(SIGINT, None)

    summary = finish(session, ended())

    assert (summary.eval_return_mean, summary.eval_return_std) == (470.0, 2.5)
    assert (summary.eval_episodes, summary.eval_seeds) == (100, "selection")


def test_finish_of_a_solved_run_calls_its_confirmation_fresh(session):
    solved(session)

    assert finish(session, ended()).eval_seeds == "fresh"


@pytest.mark.parametrize(("signal", "code"), [(SIGINT, 130), (None, 0)])
def test_finish_of_a_stopped_run_is_stopped_also_when_it_was_solved_before(session, signal, code):
    solved(session)
    if signal is None:
        session.evaluations.is_stop_asked = True
    else:
        session.stop.note(signal, None)

    summary = finish(session, ended())

    assert (summary.status, summary.solved, summary.exit_code) == ("stopped", True, code)


def test_finish_follows_a_better_confirmation_and_keeps_when_it_was_solved(session):
    solved(session)
    session.evaluations.tracker.record(
        EvaluationReport(20, 900, 3200, 500.0, 0.0, 20, 499.0, 1.0, 100)
    )

    summary = finish(session, ended())

    assert (summary.eval_return_mean, summary.eval_return_std) == (499.0, 1.0)
    assert summary.solved_at_env_step == 1600


def test_finish_keeps_the_budgets_in_force(session):
    assert finish(session, ended()).budgets == {"max_learner_steps": 60_000}
