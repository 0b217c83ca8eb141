"""What limits a run: verdicts from reports made by hand."""

from __future__ import annotations

import pytest

from qfleet.common.types import LearnerStats
from qfleet.fleet import ActorReport, FleetReport
from qfleet.limits import WINDOW_S, Bottleneck


def report(update_s=0.0, wait_s=0.0, actors=((0.0, 0.0),)):
    """`actors` are pairs of busy and blocked seconds."""
    return FleetReport(
        shards=[],
        learner=LearnerStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0),
        actors=[
            ActorReport(slot, 0, 0, 0, 0, blocked_s=blocked, busy_s=busy)
            for slot, (busy, blocked) in enumerate(actors)
        ],
        update_s=update_s,
        wait_s=wait_s,
    )


def verdict(*observed):
    subject = Bottleneck()
    for now_s, seen in observed:
        subject.observe(seen, now_s)
    return subject.verdict


def test_verdict_before_two_reports_is_unknown():
    assert verdict() == "unknown"
    assert verdict((0.0, report(1.0, 1.0))) == "unknown"


def test_verdict_while_nothing_moves_is_unknown():
    assert verdict((0.0, report(5.0, 1.0)), (1.0, report(5.0, 2.0))) == "unknown"


@pytest.mark.parametrize(
    ("update_s", "wait_s", "actors", "expected"),
    [
        # In one process nobody waits: the larger share is named, the learner on a tie.
        (3.0, 0.0, ((1.0, 0.0),), "learner"),
        (1.0, 0.0, ((3.0, 0.0),), "actors"),
        (2.0, 0.0, ((2.0, 0.0),), "learner"),
        (2.0, 0.0, ((1.5, 0.0), (1.5, 0.0)), "actors"),
        # Over processes: who waits for at most 30 % of its time sets the pace.
        (7.0, 3.0, ((1.0, 9.0),), "learner"),
        (6.9, 3.1, ((7.0, 3.0),), "actors"),
        (6.9, 3.1, ((6.9, 3.1),), "replay"),
        (1.0, 9.0, ((8.0, 0.0), (8.0, 0.0)), "actors"),
        # Both wait little: the learner's word comes first.
        (10.0, 0.1, ((10.0, 0.1),), "learner"),
    ],
)
def test_verdict_of_one_span_by_hand(update_s, wait_s, actors, expected):
    zero = report(actors=[(0.0, 0.0)] * len(actors))
    assert verdict((0.0, zero), (5.0, report(update_s, wait_s, actors))) == expected


def test_verdict_counts_differences_not_totals():
    # 1000 s of waiting long ago; in the window the learner works all the time.
    before = report(0.0, 1000.0, ((0.0, 1000.0),))
    after = report(5.0, 1000.0, ((1.0, 1004.0),))
    assert verdict((0.0, before), (5.0, after)) == "learner"


def test_verdict_forgets_what_is_older_than_the_window():
    subject = Bottleneck()
    subject.observe(report(), 0.0)
    subject.observe(report(0.1, 9.0, ((9.0, 0.1),)), 9.0)
    assert subject.verdict == "actors"
    subject.observe(report(0.1 + WINDOW_S, 9.0, ((9.1, 9.9),)), 9.0 + WINDOW_S)
    assert subject.verdict == "learner"


def test_verdict_survives_counters_that_went_back():
    # An actor died and took its counters along: negative differences count as nothing.
    before = report(0.0, 0.0, ((50.0, 50.0), (50.0, 50.0)))
    after = report(1.0, 4.0, ((55.0, 50.0),))
    assert verdict((0.0, before), (5.0, after)) == "actors"
