"""Hosts, rates and waits of every role, from two reports a second apart."""

from __future__ import annotations

from dataclasses import replace

from qfleet.common.reports import LearnerStats
from qfleet.common.types import ReplayStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run.tables.role_rows import RoleRates

HOSTS = {
    "learner": ("gpu-box", 11),
    "replay-0": ("h1", 12),
    "replay-1": ("h2", 13),
    "actor-0": ("h1", 14),
    "actor-1": ("h2", 15),
    "evaluator": ("h1", 16),
}


def report(second, *, hosts=HOSTS, absent=(), incarnation=0):
    """After so many seconds of 100 updates/s, 40 and 20 inserts/s, 50 and 30 env steps/s."""
    return FleetReport(
        shards=[
            ReplayStats(0, 40 * second, 0, 0, 0.0, 0, 0, 0, 0),
            ReplayStats(0, 20 * second, 0, 0, 0.0, 0, 0, 0, 0),
        ],
        learner=LearnerStats(100 * second, 3, 1, 0.0, 0.0, 0.0, 0.0),
        actors=[
            ActorReport(0, 50 * second, 0, 0, 0, {"wait": 0.1 * second}),
            ActorReport(1, 30 * second, 0, 0, 0, {"wait": 0.9 * second}, incarnation=incarnation),
        ],
        learner_times={"wait": 0.8 * second},
        shard_times=[{"sample_held": 0.7 * second}, {"insert_held": 0.9 * second}],
        hosts=dict(hosts),
        absent=dict(absent),
        evaluator_steps=0,
    )


def seen(rows):
    return [(row.role, row.host, row.pid, row.rate, row.unit, row.waits_for) for row in rows]


def test_rows_are_of_every_role_with_host_rate_and_wait():
    rates = RoleRates()
    assert {row.rate for row in rates.rows(report(5), 100.0)} == {0.0}
    assert seen(rates.rows(report(7), 102.0)) == [
        ("learner", "gpu-box", 11, 100.0, "updates/s", "actors (the limiter keeps the ratio)"),
        ("replay-0", "h1", 12, 40.0, "inserts/s", "actors' transitions"),
        ("replay-1", "h2", 13, 20.0, "inserts/s", "the learner's draws"),
        ("actor-0", "h1", 14, 50.0, "env steps/s", ""),
        ("actor-1", "h2", 15, 30.0, "env steps/s", "replay-1"),
        ("evaluator", "h1", 16, 0.0, "env steps/s", "something to evaluate"),
    ]


def test_roles_that_are_not_there_say_what_they_wait_for():
    rates = RoleRates()
    rates.rows(report(1), 1.0)
    absent = {"replay-1": "its restore", "actor-2": "room: CPU 0.5"}
    rows = seen(rates.rows(report(2, absent=absent), 2.0))
    assert [role for role, *_ in rows] == [
        *("learner", "replay-0", "actor-0", "actor-1", "evaluator"),
        *("replay-1", "actor-2"),
    ]
    assert rows[-2:] == [
        ("replay-1", "", 0, 0.0, "", "its restore"),
        ("actor-2", "", 0, 0.0, "", "room: CPU 0.5"),
    ]


def test_counters_of_a_process_that_took_over_begin_at_nothing():
    rates = RoleRates()
    rates.rows(report(10), 1.0)
    row = rates.rows(report(1, incarnation=1), 2.0)[4]
    assert (row.role, row.rate) == ("actor-1", 30.0)


def test_shard_that_rests_waits_for_an_actor():
    later = replace(report(2), resting=[1])
    rates = RoleRates()
    rates.rows(report(1), 1.0)
    waits = {row.role: row.waits_for for row in rates.rows(later, 2.0)}
    assert waits["replay-0"] == "actors' transitions"
    assert waits["replay-1"] == "an actor; the others are drawn from"


def test_roles_in_one_process_have_no_rows():
    assert RoleRates().rows(report(1, hosts={}), 1.0) == []
