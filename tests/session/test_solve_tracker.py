"""Solved means confirmed on seeds of its own, and the confirmed parameters stay the best."""

from __future__ import annotations

import json

import pytest

from qfleet.common.types import EnvironmentSpec, EvaluationReport
from qfleet.session.solve_tracker import SolveTracker, Verdict
from qfleet.settings.config import Config, EvalConfig


def spec(threshold=475.0):
    return EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, threshold, 500)


def tracker(threshold=475.0, **evaluation):
    return SolveTracker(Config(eval=EvalConfig(**evaluation)), spec(threshold))


def report(mean, confirm=None, step=100):
    n = 0 if confirm is None else 100
    std = None if confirm is None else 2.0
    return EvaluationReport(7, step, 3 * step, mean, 1.0, 20, confirm, std, n)


def test_threshold_auto_is_the_registered_one():
    assert tracker().threshold == 475.0
    assert tracker(threshold=None).threshold is None
    assert tracker(solved_at_return=100).threshold == 100
    assert tracker(solved_at_return=None).threshold is None


def test_request_seeds_are_never_used_twice():
    subject = tracker()
    requests = [subject.request() for _ in range(200)]
    seeds = [r.seed for r in requests] + [r.confirm_seed for r in requests]
    assert len(set(seeds)) == 400
    assert all(r.episodes == 20 and r.confirm_episodes == 100 for r in requests)
    assert all(r.threshold == 475.0 for r in requests)


def test_request_seeds_depend_on_the_number_and_the_run_seed_alone():
    first, second = tracker(), tracker()
    assert [first.request() for _ in range(3)] == [second.request() for _ in range(3)]
    other = SolveTracker(Config(seed=2), spec())
    assert other.request().seed != tracker().request().seed


def test_record_selection_alone_never_solves():
    subject = tracker()
    assert subject.record(report(500.0)) == Verdict(is_best=True, is_solved=False)
    assert subject.confirmed is None


@pytest.mark.parametrize(("confirm", "solved"), [(474.99, False), (475.0, True), (500.0, True)])
def test_record_confirmation_at_the_threshold_solves(confirm, solved):
    subject = tracker()
    evaluated = report(490.0, confirm)
    assert subject.record(evaluated).is_solved is solved
    assert (subject.confirmed == evaluated) is solved


def test_record_without_a_threshold_solves_nothing():
    subject = tracker(threshold=None)
    assert subject.request().threshold is None
    assert subject.record(report(1e9, 1e9)) == Verdict(True, False)


def test_record_best_is_the_highest_score_and_ties_keep_the_first():
    subject = tracker()
    table = [(10.0, True), (9.0, False), (10.0, False), (11.0, True), (-5.0, False)]
    for step, (mean, is_best) in enumerate(table):
        assert subject.record(report(mean, step=step)) == Verdict(is_best, False)
    assert (subject.best_return_mean, subject.best_learner_step) == (11.0, 3)


def test_record_failed_confirmation_counts_by_its_own_mean():
    # 480 selected itself and was confirmed at 460: 470 without a confirmation is better than that.
    subject = tracker()
    subject.record(report(480.0, confirm=460.0))
    assert subject.best_return_mean == 460.0
    assert subject.record(report(470.0)).is_best


def test_record_solved_is_best_even_below_an_earlier_selection():
    subject = tracker(solved_at_return=100)
    subject.record(report(99.0))
    subject.record(report(500.0))
    assert subject.record(report(150.0, confirm=120.0, step=9)) == Verdict(True, True)
    assert (subject.best_return_mean, subject.best_learner_step) == (120.0, 9)


def test_record_after_the_confirmation_never_replaces_the_best():
    subject = tracker()
    subject.record(report(480.0, confirm=476.0, step=5))
    confirmed = subject.confirmed
    for mean, confirm in ((500.0, None), (500.0, 500.0)):
        assert subject.record(report(mean, confirm, step=9)) == Verdict(False, False)
    assert subject.confirmed == confirmed
    assert (subject.best_return_mean, subject.best_learner_step) == (476.0, 5)
    assert subject.last == report(500.0, 500.0, step=9)
    assert subject.request().threshold is None


@pytest.mark.parametrize("confirm", [None, 480.0])
def test_capture_round_trip_through_json_is_exact(confirm):
    subject = tracker()
    subject.request()
    subject.record(report(12.5, step=1))
    subject.request()
    subject.record(report(490.0, confirm, step=2))
    restored = tracker()
    restored.restore(json.loads(json.dumps(subject.capture())))
    assert restored == subject
    assert restored.request() == subject.request()
    assert restored.record(report(480.5, 481.0)) == subject.record(report(480.5, 481.0))
