"""Solved means confirmed on seeds of its own, and the confirmed parameters stay the best."""

from __future__ import annotations

import json

import pytest

from qfleet.common.reports import EvaluationReport
from qfleet.common.types import EnvironmentSpec
from qfleet.session.solve_tracker import SolveTracker, Verdict, score
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
    assert subject.best == report(11.0, step=3)


def test_record_failed_confirmation_counts_by_its_own_mean():
    # 480 selected itself and was confirmed at 460: 470 without a confirmation is better than that.
    subject = tracker()
    subject.record(report(480.0, confirm=460.0))
    assert score(subject.best) == 460.0
    assert subject.record(report(470.0)).is_best


def test_record_solved_is_best_even_below_an_earlier_selection():
    subject = tracker(solved_at_return=100)
    subject.record(report(99.0))
    subject.record(report(500.0))
    assert subject.record(report(150.0, confirm=120.0, step=9)) == Verdict(True, True)
    assert subject.best == subject.confirmed == report(150.0, confirm=120.0, step=9)


def test_record_after_the_confirmation_takes_only_what_is_confirmed_higher():
    subject = tracker()
    subject.record(report(480.0, confirm=475.4, step=5))
    table = [
        (500.0, None, False),  # not confirmed
        (500.0, 475.3, False),
        (500.0, 475.4, False),  # equal: the first stays
        (477.0, 490.0, True),
        (500.0, 489.0, False),  # above the first, below the newest
        (500.0, 500.0, True),
    ]
    best = 5
    for step, (mean, confirm, is_best) in enumerate(table, start=6):
        evaluated = report(mean, confirm, step=step)
        assert subject.record(evaluated) == Verdict(is_best, False)
        best = step if is_best else best
        assert subject.best.learner_step == subject.confirmed.learner_step == best
        assert subject.last == evaluated
    assert subject.solved_at_env_step == 15  # the first confirmation's


def test_request_after_the_confirmation_asks_for_one_of_what_is_strictly_better():
    subject = tracker()
    subject.request()
    subject.record(report(480.0, confirm=475.4))

    request = subject.request()

    assert 475.4 < request.threshold < 475.4 + 1e-9
    assert request.confirm_seed not in {r.confirm_seed for r in (tracker().request(),)}
    subject.record(report(500.0, confirm=500.0))
    assert subject.request().threshold > 500.0  # nothing can be better


def test_confirmed_one_that_a_raised_threshold_no_longer_accepts_is_not_solved():
    subject = tracker(solved_at_return=100)
    subject.record(report(120.0, confirm=110.0))
    raised = tracker(solved_at_return=200)

    raised.restore(json.loads(json.dumps(subject.capture())))

    assert (raised.confirmed, raised.solved_at_env_step) == (None, None)
    assert score(raised.best) == 110.0
    assert raised.request().threshold == 200
    assert raised.record(report(250.0, confirm=240.0)) == Verdict(True, True)


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
