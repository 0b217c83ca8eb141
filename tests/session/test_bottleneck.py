"""What limits a run: verdicts from reports made by hand."""

from __future__ import annotations

import pytest

from qfleet.common.reports import LearnerStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.session.bottleneck import WINDOW_S, Bottleneck


def report(learner=None, actors=({},), shards=({},), one_process=False):
    return FleetReport(
        shards=[],
        learner=LearnerStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0),
        actors=[ActorReport(slot, 0, 0, 0, 0, times) for slot, times in enumerate(actors)],
        learner_times=learner or {},
        shard_times=list(shards),
        is_one_process=one_process,
    )


def verdict(*observed):
    subject = Bottleneck()
    for now_s, seen in observed:
        subject.observe(seen, now_s)
    return subject.verdict


def of_one_span(**times):
    return verdict((0.0, report()), (10.0, report(**times)))


def test_verdict_before_two_reports_is_unknown():
    assert verdict() == "unknown"
    assert verdict((0.0, report({"learning": 1.0, "wait": 1.0}))) == "unknown"


def test_verdict_while_nothing_moves_is_unknown():
    times = {"learning": 5.0, "wait": 1.0}
    assert verdict((0.0, report(times)), (1.0, report(times))) == "unknown"


@pytest.mark.parametrize(
    ("longest", "part"),
    [
        ("acting", "actors"),
        ("environment", "actors"),
        ("encoding", "actors"),
        ("replay", "shards"),
        ("sampling", "shards"),
        ("copying", "learner"),
        ("learning", "learner"),
    ],
)
def test_verdict_in_one_process_is_the_longest_stage(longest, part):
    parts = {
        "actors": dict.fromkeys(("acting", "environment", "encoding"), 1.0),
        "shards": dict.fromkeys(("replay", "sampling"), 1.0),
        "learner": dict.fromkeys(("copying", "learning"), 1.0),
    }
    parts[part][longest] = 1.5
    seen = report(parts["learner"], [parts["actors"]], [parts["shards"]], one_process=True)
    assert verdict((0.0, report()), (10.0, seen)) == longest


def test_verdict_actors_that_take_turns_add_up_and_those_at_once_do_not():
    learner, actors = {"learning": 1.5}, [{"environment": 1.0}, {"environment": 1.0}]
    one, several = (report(learner, actors, one_process=p) for p in (True, False))
    assert verdict((0.0, report()), (10.0, one)) == "environment"
    assert verdict((0.0, report()), (10.0, several)) == "learning"


@pytest.mark.parametrize(
    ("learner", "actor", "shard", "expected"),
    [
        # The learner waits for at most 30 % of its time: it sets the pace.
        ({"learning": 5, "copying": 2, "wait": 3}, {"wait": 9}, {"insert_held": 9}, "learning"),
        ({"learning": 2, "copying": 5, "wait": 3}, {"wait": 9}, {"insert_held": 9}, "copying"),
        # It waits for transitions, and the actors hardly wait: they set the pace.
        (
            {"learning": 6.9, "wait": 3.1},
            {"acting": 5, "environment": 2, "wait": 3},
            {"sample_held": 3},
            "acting",
        ),
        (
            {"learning": 1, "wait": 9},
            {"acting": 1, "environment": 7},
            {"sample_held": 4.5},
            "environment",
        ),
        ({"learning": 1, "wait": 9}, {"encoding": 9}, {"sample_held": 9}, "encoding"),
        # Both wait: for the limiter, or because inserting takes so long.
        (
            {"learning": 1, "wait": 9},
            {"acting": 1, "wait": 9},
            {"sample_held": 9, "insert_held": 4.5, "replay": 1},
            "limiter",
        ),
        (
            {"learning": 1, "wait": 9},
            {"acting": 1, "wait": 9},
            {"sample_held": 9, "insert_held": 4.4, "replay": 1},
            "replay",
        ),
        # It waits for answers that the limiter does not hold back.
        (
            {"learning": 1, "wait": 9},
            {"acting": 9},
            {"sample_held": 4.4, "sampling": 4, "replay": 1},
            "sampling",
        ),
        (
            {"learning": 1, "wait": 9},
            {"acting": 9},
            {"sample_held": 0, "sampling": 1, "replay": 4},
            "replay",
        ),
    ],
)
def test_verdict_over_processes_by_hand(learner, actor, shard, expected):
    assert of_one_span(learner=learner, actors=[actor], shards=[shard]) == expected


def test_verdict_the_busiest_shard_counts_and_actors_are_averaged():
    # Two actors wait 9 s each while one shard's limiter holds its own back for 9 s.
    shards = [{}, {"sample_held": 9, "insert_held": 9}]
    actors = [{"acting": 1, "wait": 9}] * 2
    seen = report({"learning": 1, "wait": 9}, actors, shards)
    before = report(actors=[{}, {}], shards=[{}, {}])
    assert verdict((0.0, before), (10.0, seen)) == "limiter"


def test_verdict_counts_differences_not_totals():
    # 1000 s of waiting long ago; in the window the learner works all the time.
    before = report({"wait": 1000.0}, [{"wait": 1000.0}])
    after = report({"learning": 5.0, "wait": 1000.0}, [{"acting": 1.0, "wait": 1004.0}])
    assert verdict((0.0, before), (5.0, after)) == "learning"


def test_verdict_forgets_what_is_older_than_the_window():
    subject = Bottleneck()
    subject.observe(report(), 0.0)
    waiting = {"learning": 0.1, "wait": 9.0}
    subject.observe(report(waiting, [{"acting": 9.0}], [{"sample_held": 9.0}]), 9.0)
    assert subject.verdict == "acting"
    working = {"learning": 0.1 + WINDOW_S, "wait": 9.0}
    seen = report(working, [{"acting": 9.1, "wait": 9.8}], [{"sample_held": 9.0}])
    subject.observe(seen, 9.0 + WINDOW_S)
    assert subject.verdict == "learning"


def test_verdict_survives_counters_that_went_back():
    # An actor died and took its counters along: negative differences count as nothing.
    before = report({}, [{"acting": 50.0, "wait": 50.0}] * 2)
    after = report({"learning": 1.0, "wait": 4.0}, [{"acting": 105.0}], [{"sample_held": 4.0}])
    assert verdict((0.0, before), (5.0, after)) == "acting"
