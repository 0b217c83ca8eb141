"""The books of a run's transitions, by hand: every count is somebody's own."""

import json

import pytest

from qfleet.common.reports import LearnerStats
from qfleet.common.types import ReplayStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.replay_server.arrivals import Arrival
from qfleet.session.transition_accounts import LOWER_BOUNDS, TransitionAccounts


def shard(size, evicted=0):
    inserted = size + evicted
    return ReplayStats(size, inserted, 0, evicted, float(size), 0, 0, 0, 0)


def actor(produced, slot=0, incarnation=0, is_final=False):
    return ActorReport(slot, produced, produced, 0, 0, incarnation=incarnation, is_final=is_final)


def report(shards, actors=(), arrivals=(), ended=()):
    return FleetReport(
        shards=list(shards),
        learner=LearnerStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0),
        actors=list(actors),
        ended=list(ended),
        arrivals=[Arrival(*arrival) for arrival in arrivals],
    )


def accounts_of(*reports):
    accounts = TransitionAccounts()
    for one in reports:
        accounts.observe(one)
    return accounts.accounting(reports[-1])


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # Everything arrived.
        (report([shard(70, 30)], [actor(100)], [(0, 0, 100, 100, 0)]), (100, 70, 30, 0, 0, 0)),
        # Some are still with the actors, and one chunk came late and was refused.
        (
            report(
                [shard(40), shard(50, 10)],
                [actor(60), actor(55, slot=1)],
                [(0, 0, 50, 45, 5), (1, 0, 55, 55, 0)],
            ),
            (115, 90, 10, 5, 0, 10),
        ),
        # A chunk came before the actor's next answer to a question.
        (report([shard(90)], [actor(80)], [(0, 0, 90, 90, 0)]), (90, 90, 0, 0, 0, 0)),
        # An earlier chunk is missing: the later one says that there was one.
        (report([shard(50)], [actor(0)], [(0, 0, 90, 50, 0)]), (90, 50, 0, 0, 0, 40)),
    ],
)
def test_living_actors_have_in_flight_what_has_not_come(seen, expected):
    found = accounts_of(seen)

    assert (
        *(found.produced, found.resident, found.evicted),
        *(found.rejected, found.lost, found.in_flight),
    ) == expected
    assert found.is_balanced
    assert found.at_least == []


@pytest.mark.parametrize(
    ("told", "is_final", "arrived", "produced", "lost", "at_least"),
    [
        (80, False, 65, 80, 15, LOWER_BOUNDS),  # killed: it may have played more than it told of
        (80, False, 90, 90, 0, LOWER_BOUNDS),  # it delivered more than it had told of
        (80, True, 65, 80, 15, []),  # its last words: nothing came after
        (0, False, 0, 0, 0, LOWER_BOUNDS),  # nothing was ever heard of it
    ],
)
def test_dead_actor_has_lost_what_it_numbered_and_no_shard_has(
    told, is_final, arrived, produced, lost, at_least
):
    before = report([shard(arrived)], [actor(told)] if told else [], [(0, 0, arrived, arrived, 0)])
    ended = [actor(told, is_final=is_final)]
    after = report(
        [shard(arrived + 100)],
        [actor(100, incarnation=1)],
        [(0, 0, arrived, arrived, 0), (0, 1, 100, 100, 0)],
        ended,
    )

    found = accounts_of(before, after)

    assert (found.produced, found.lost, found.in_flight) == (100 + produced, lost, 0)
    assert found.is_balanced
    assert found.at_least == at_least


def test_transition_that_vanished_inside_a_shard_does_not_balance():
    found = accounts_of(report([shard(99)], [actor(100)], [(0, 0, 100, 100, 0)]))

    assert not found.is_balanced


def test_what_came_after_a_cut_is_lost_when_the_shards_go_back_to_it():
    accounts = TransitionAccounts()
    accounts.observe(report([shard(900)], [actor(1000)], [(0, 0, 900, 900, 0)]))

    accounts.ended_unheard()
    cut = report([shard(700)], [], [(0, 0, 700, 700, 0)])
    accounts.observe(cut)

    found = accounts.accounting(cut)
    assert (found.produced, found.resident, found.lost) == (1000, 700, 300)
    assert found.at_least == LOWER_BOUNDS
    further = report(
        [shard(1200)], [actor(520, incarnation=1)], [(0, 0, 700, 700, 0), (0, 1, 500, 500, 0)]
    )
    accounts.observe(further)
    found = accounts.accounting(further)
    assert (found.produced, found.lost, found.in_flight) == (1520, 300, 20)
    assert found.is_balanced


def test_resumed_run_knows_what_its_cut_knew():
    accounts = TransitionAccounts()
    last = report([shard(95)], [actor(100)], [(0, 0, 95, 95, 0)])
    accounts.observe(last)
    open_books = json.loads(json.dumps(accounts.capture()))
    accounts.all_told(last)
    closed_books = json.loads(json.dumps(accounts.capture()))

    for state, at_least in ((open_books, LOWER_BOUNDS), (closed_books, [])):
        resumed = TransitionAccounts()
        resumed.restore(state)
        goes_on = report(
            [shard(105)], [actor(10, incarnation=9)], [(0, 0, 95, 95, 0), (0, 9, 10, 10, 0)]
        )
        resumed.observe(goes_on)
        found = resumed.accounting(goes_on)
        assert (found.produced, found.lost, found.in_flight) == (110, 5, 0)
        assert found.is_balanced
        assert found.at_least == at_least


def test_restoring_a_cut_forgets_nothing_of_later():
    accounts = TransitionAccounts()
    accounts.observe(report([shard(50)], [actor(50)], [(0, 0, 50, 50, 0)]))
    state = accounts.capture()
    accounts.observe(report([shard(80)], [actor(80)], [(0, 0, 80, 80, 0)]))

    accounts.restore(state)

    after = report([shard(50)], [actor(0, incarnation=1)], [(0, 0, 50, 50, 0)])
    assert accounts.accounting(after).lost == 30


def test_what_a_shard_forgot_of_a_living_actor_is_lost_and_what_it_has_not_sent_in_flight():
    """Restored alone, the shard is back at 60 of the 95 that it had acknowledged."""
    living = ActorReport(0, 100, 100, 5, 0)
    other = ActorReport(1, 100, 100, 5, 0)
    accounts = TransitionAccounts()
    accounts.shard_rolled_back([0])
    seen = report([shard(60), shard(90)], [living, other], [(0, 0, 95, 60, 0), (1, 0, 90, 90, 0)])
    accounts.observe(seen)

    found = accounts.accounting(seen)

    assert (found.produced, found.resident, found.lost, found.in_flight) == (200, 150, 35, 15)
    assert found.is_balanced
    assert found.at_least == []
    again = TransitionAccounts()
    again.restore(json.loads(json.dumps(accounts.capture())))
    again.observe(seen)
    assert again.accounting(seen) == found
