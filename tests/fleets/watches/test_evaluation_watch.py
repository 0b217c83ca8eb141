"""The evaluator that stops, hangs, has no place or loses a call, played by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.common.errors import RoleLostError
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.fleets.watches.evaluation_watch import (
    LAST_START_TIMEOUT_S,
    MAX_DEATHS_WITHOUT_AN_EVALUATION,
    EvaluationWatch,
)


class Record:
    """The run's bookkeeping, as far as evaluations ask for it."""

    def __init__(self):
        self.told, self.reports, self.reason = [], [], "max_wall_s"

    def evaluation_request(self):
        return EvaluationRequest(*range(len(EvaluationRequest._fields)))

    def record_evaluation(self, report, params):
        self.reports.append(report)

    def incident(self, text, whole_text=""):
        self.told.append(text)

    def stop_reason(self):
        return self.reason


@pytest.fixture
def record():
    return Record()


@pytest.fixture
def watch(by_hand):
    plans = SimpleNamespace(
        evaluator=SimpleNamespace(network=None), fleet=SimpleNamespace(step_timeout_s=45.0)
    )
    return EvaluationWatch(by_hand, plans, None)


def tell(watch, by_hand, version):
    """The learner names a snapshot to evaluate."""
    watch.ask()
    by_hand.learner.open("await_evaluation")[-1].answer((version, b"snapshot"))
    watch.take_due()


def go_on(watch, record, by_hand, now_s, steps=None, is_playing=True):
    """Two ticks; the evaluator's pings are answered with `steps` unless it says nothing."""
    for _ in range(2):
        if steps is not None:
            for call in by_hand.evaluator.open("ping"):
                call.answer({"pid": 1, "steps": steps, "is_playing": is_playing})
        watch.go_on(record, now_s)


def test_evaluator_that_stopped_is_replaced_within_a_minute_and_plays_the_same_again(
    watch, record, by_hand, ray
):
    tell(watch, by_hand, 3)
    go_on(watch, record, by_hand, 0.0, steps=0)
    first = by_hand.evaluator
    [evaluation] = first.open("evaluate")
    for second in range(1, 46):
        go_on(watch, record, by_hand, float(second))
    assert record.told == []
    go_on(watch, record, by_hand, 46.0)
    assert record.told == [
        "driver heard nothing from the evaluator for 45 s; a new one takes its place"
    ]
    assert (by_hand.made, ray.killed) == (["evaluator"], [first])
    [again] = by_hand.evaluator.open("evaluate")
    assert again.arguments[0] == evaluation.arguments[0] == b"snapshot"


def test_evaluator_whose_environment_hangs_is_replaced(watch, record, by_hand):
    tell(watch, by_hand, 3)
    for second in range(0, 47):
        go_on(watch, record, by_hand, float(second), steps=100)
    assert record.told == [
        "the evaluator's environments have been in one step or reset for 46 s; "
        "run.step_timeout_s is 45; a new one takes its place"
    ]


def test_evaluator_without_work_may_stand_still(watch, record, by_hand):
    for second in range(0, 200):
        go_on(watch, record, by_hand, float(second), steps=100)
    assert (record.told, by_hand.made) == ([], [])


def test_evaluation_whose_call_was_lost_is_asked_for_again(watch, record, by_hand, ray):
    tell(watch, by_hand, 3)
    go_on(watch, record, by_hand, 0.0, steps=0)
    by_hand.evaluator.open("evaluate")[0].answer(ray.lost)
    go_on(watch, record, by_hand, 1.0, steps=5)
    assert len(by_hand.evaluator.open("evaluate")) == 1
    assert (record.told, by_hand.made) == ([], [])


def test_evaluator_that_is_idle_has_not_heard_and_is_asked_again_soon(watch, record, by_hand):
    tell(watch, by_hand, 3)
    go_on(watch, record, by_hand, 0.0, steps=0, is_playing=False)
    go_on(watch, record, by_hand, 0.4, steps=0, is_playing=False)
    assert len(by_hand.evaluator.open("evaluate")) == 1  # the call may be on its way
    go_on(watch, record, by_hand, 0.8, steps=0, is_playing=False)
    for now_s in (1.1, 1.4):
        go_on(watch, record, by_hand, now_s, steps=5)
    assert len(by_hand.evaluator.open("evaluate")) == 2
    for now_s in (1.7, 2.0, 2.3):  # its answer is on its way, or lost
        go_on(watch, record, by_hand, now_s, steps=9, is_playing=False)
    assert len(by_hand.evaluator.open("evaluate")) == 3
    by_hand.evaluator.open("evaluate")[-1].answer([0] * len(EvaluationReport._fields))
    go_on(watch, record, by_hand, 2.6, steps=12)
    assert len(record.reports) == 1
    assert (record.told, by_hand.made, watch.is_busy) == ([], [], False)


def test_evaluators_that_die_one_after_the_other_end_the_run(watch, record, by_hand, ray):
    tell(watch, by_hand, 3)
    for _ in range(MAX_DEATHS_WITHOUT_AN_EVALUATION - 1):
        watch.go_on(record, 0.0)
        by_hand.evaluator.open("evaluate")[0].answer(ray.dead)
    watch.go_on(record, 0.0)
    by_hand.evaluator.open("evaluate")[0].answer(ray.dead)
    with pytest.raises(RoleLostError, match="5 evaluators were lost one after the other"):
        watch.go_on(record, 0.0)


def test_end_does_not_wait_for_an_evaluator_that_has_no_place(watch, record, by_hand, ray):
    tell(watch, by_hand, 3)
    began_s = ray.now_s

    watch.finish(record)

    assert LAST_START_TIMEOUT_S <= ray.now_s - began_s < LAST_START_TIMEOUT_S + 1.0
    assert record.told == ["the last evaluation is left out: the evaluator did not start"]


def test_end_by_a_signal_waits_for_no_evaluation(watch, record, by_hand, ray):
    tell(watch, by_hand, 3)
    record.reason, began_s = "SIGTERM", ray.now_s

    watch.finish(record)

    assert ray.now_s == began_s
    assert by_hand.evaluator.calls == []
