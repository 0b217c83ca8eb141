"""A request is evaluated once, and confirmed on other seeds only when it reaches the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.actors.confirmation import run_request
from qfleet.actors.evaluator import EpisodeStatistics, Evaluator
from qfleet.common.config import EnvConfig
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.types import ParamsSnapshot

SNAPSHOT = ParamsSnapshot(12, 600, 4321, False, {})
Q_FUNCTION = object()


class FakeEvaluator:
    """Answers with the returns of each seed and notes what it was asked."""

    def __init__(self, returns_by_seed):
        self._returns = {s: np.array(r, dtype=np.float64) for s, r in returns_by_seed.items()}
        self.asked = []
        self.n_cut = 0

    def evaluate(self, q_function, n_episodes, seed):
        assert q_function is Q_FUNCTION
        self.asked.append((n_episodes, seed))
        returns = self._returns[seed]
        return EpisodeStatistics(returns, np.ones(len(returns), np.int64), self.n_cut)


def run(returns_by_seed, threshold):
    evaluator = FakeEvaluator(returns_by_seed)
    request = EvaluationRequest(2, 11, threshold, 4, 22)
    return run_request(evaluator, Q_FUNCTION, SNAPSHOT, request), evaluator.asked


@pytest.mark.parametrize("threshold", [None, 20.5])
def test_run_request_below_the_threshold_is_not_confirmed(threshold):
    report, asked = run({11: [10.0, 30.0]}, threshold)
    assert report == EvaluationReport(12, 600, 4321, 20.0, 10.0, 2, None, None, 0)
    assert asked == [(2, 11)]


def test_run_request_at_the_threshold_is_confirmed_on_its_own_seed():
    report, asked = run({11: [10.0, 30.0], 22: [1.0, 3.0, 1.0, 3.0]}, 20.0)
    assert report == EvaluationReport(12, 600, 4321, 20.0, 10.0, 2, 2.0, 1.0, 4)
    assert asked == [(2, 11), (4, 22)]


def test_run_request_returns_plain_numbers_that_cross_processes():
    report, _ = run({11: [10.0, 30.0], 22: [1.0, 3.0, 1.0, 3.0]}, 20.0)
    assert [type(value) for value in report] == [
        *(int, int, int, float, float, int, float, float, int, int, int)
    ]


def test_run_request_with_the_evaluator_is_the_same_each_time():
    class Right:
        def q_values(self, observations):
            return np.tile(np.array([[0.0, 1.0]], np.float32), (len(observations), 1))

    evaluator = Evaluator(EnvConfig())
    request = EvaluationRequest(3, 5, 1.0, 6, 6)
    try:
        first = run_request(evaluator, Right(), SNAPSHOT, request)
        again = run_request(evaluator, Right(), SNAPSHOT, request)
    finally:
        evaluator.close()
    assert first == again
    assert (first.episodes, first.confirm_episodes) == (3, 6)
    assert 8.0 <= first.return_mean <= 11.0
    assert first.confirm_return_mean is not None
    assert 8.0 <= first.confirm_return_mean <= 11.0


def test_run_request_counts_the_episodes_that_were_cut():
    evaluator = FakeEvaluator({11: [10.0, 30.0], 22: [1.0, 3.0, 1.0, 3.0]})
    evaluator.n_cut = 2

    below = run_request(evaluator, Q_FUNCTION, SNAPSHOT, EvaluationRequest(2, 11, 50.0, 4, 22))
    above = run_request(evaluator, Q_FUNCTION, SNAPSHOT, EvaluationRequest(2, 11, 20.0, 4, 22))

    assert (below.cut_episodes, below.confirm_cut_episodes) == (2, 0)
    assert (above.cut_episodes, above.confirm_cut_episodes) == (2, 2)
