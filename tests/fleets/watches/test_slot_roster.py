"""Wanted against existing slots, and the ε ladder over those that exist: against the formula."""

from __future__ import annotations

import numpy as np

from qfleet.common.schedules import epsilon_ladder
from qfleet.fleets.supervisor import ActorSupervisor
from qfleet.fleets.watches.slot_roster import SlotRoster


def epsilons(roster, n_envs=2):
    """ε of every sub-environment of every slot that exists, as `Exploration` takes them."""
    found = []
    for place, n_actors in roster.places.values():
        ladder = epsilon_ladder(n_actors * n_envs, 0.4, 7.0)
        found += ladder[place * n_envs : (place + 1) * n_envs].tolist()
    return sorted(found)


def happen(what, roster, supervisor, rng):
    """One of the things that happen to slots; returns the incarnations of those that are filled."""
    filled = {}
    if what == 0:
        roster.want(int(rng.integers(1, 9)))
    elif what == 1:
        missing = roster.missing(lambda slot: slot != 5 or rng.random() < 0.5)
        filled = {slot: supervisor.add(slot) for slot in missing}
        roster.spread()
    elif what == 2:
        for slot in roster.surplus():
            roster.leaves(slot)
    elif what == 3:
        for slot in list(roster.leaving)[:2]:
            roster.has_left(slot)
    elif supervisor.slots:
        slot = int(rng.choice(list(supervisor.slots)))
        roster.has_room(slot, bool(rng.random() < 0.5))
    return filled


def test_ladder_is_the_formula_at_every_size_whatever_happens_to_slots():
    supervisor, rng = ActorSupervisor(min_count=0), np.random.default_rng(7)
    roster = SlotRoster(supervisor, 0)
    incarnations = {}
    for _ in range(400):
        filled = happen(int(rng.integers(5)), roster, supervisor, rng)
        assert all(number > incarnations.get(slot, -1) for slot, number in filled.items())
        incarnations |= filled
        exist = len(roster.places)
        assert set(roster.places) <= set(supervisor.slots) - roster.leaving
        assert [place for place, _ in roster.places.values()] == list(range(exist))
        formula = epsilon_ladder(2 * exist, 0.4, 7.0) if exist else []
        np.testing.assert_array_equal(epsilons(roster), sorted(formula))
    assert len(incarnations) == 8


def test_slot_that_is_given_up_has_no_place():
    supervisor = ActorSupervisor(min_count=0)
    roster = SlotRoster(supervisor, 3)
    for _ in range(3):
        supervisor.add(len(supervisor.slots))
    supervisor.slots[1].given_up = True
    roster.spread()
    assert roster.places == {0: (0, 2), 2: (1, 2)}


def test_slots_that_write_are_all_but_those_given_up_or_without_room():
    supervisor = ActorSupervisor(min_count=0)
    roster = SlotRoster(supervisor, 5)
    for slot in range(5):
        supervisor.add(slot)
    roster.has_room(1, False)
    roster.leaves(2)  # it has yet to hand over what it played
    supervisor.died(3, "why", 10, 1, 0.0)  # a new one comes
    supervisor.slots[4].given_up = True
    assert roster.writers == [0, 2, 3]
    roster.has_left(2)
    roster.has_room(1, True)
    assert roster.writers == [0, 1, 3]
