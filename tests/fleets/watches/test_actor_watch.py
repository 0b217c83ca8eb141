"""Actors that hang, say nothing, have no place or lose a call, with roles played by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.common.errors import ResourcesError
from qfleet.fleets.watches.actor_watch import LEAVE_DRAIN_S, ActorWatch
from qfleet.fleets.watches.run_call import LOST_AFTER_S

STEP_TIMEOUT_S = 45.0


def counters(slot, env_steps, *, is_stepping=True, incarnation=0, ladder=None, has_begun=True):
    return {
        "has_begun": has_begun,
        "slot": slot,
        "env_steps": env_steps,
        "produced": env_steps,
        "unsent": 0,
        "params_learner_step": 0,
        "times": {},
        "episodes": 0,
        "is_stepping": is_stepping,
        "incarnation": incarnation,
        "ladder": ladder or [slot, 2],
    }


@pytest.fixture
def told():
    return []


@pytest.fixture
def watch(by_hand):
    plan = SimpleNamespace(step_timeout_s=STEP_TIMEOUT_S, min_actors=1, actors=2)
    watch = ActorWatch(by_hand, plan, 0)
    watch.start()
    return watch


@pytest.fixture
def play(watch, by_hand, told):
    """One poll at `now_s`; every open question of a slot in `answers` is answered by it first."""

    def play(now_s, answers):
        for _ in range(2):  # a question, then its answer
            for slot, answer in answers.items():
                for call in by_hand.actors[slot].open("ping"):
                    call.answer(answer)
            watch.poll(lambda text, whole="": told.append(text), now_s)

    return play


def bury(watch, told, now_s=0.0, learner_steps=0):
    for ref in [ref for ref in watch.runs if ref.outcome]:
        watch.bury(ref, lambda text, whole="": told.append(text), learner_steps, now_s)


def test_environment_that_hangs_while_others_play_is_named_and_its_actor_replaced(
    watch, play, by_hand, ray, told
):
    for second in range(0, 47):
        play(float(second), {0: counters(0, 10 * second), 1: counters(1, 500)})
    assert ray.killed == [by_hand.actors[1]]  # its pings had answered all the time
    [run] = by_hand.actors[1].open("run")
    run.answer(ray.dead)
    bury(watch, told, 47.0)
    assert len(told) == 1
    assert told[0].startswith(
        "actor 1 died (its environments have been in one step or reset for 46 s after 500 env "
        "steps; run.step_timeout_s is 45)"
    )
    watch.fill_slots(lambda text, whole="": None, 47.4)
    assert by_hand.made == []
    watch.fill_slots(lambda text, whole="": None, 48.1)
    assert by_hand.made == [("fence", 1, 1), ("actor", 1, 1)]
    play(49.0, {0: counters(0, 500), 1: counters(1, 1, incarnation=1)})
    assert told[-1] == "actor 1 plays again (incarnation 1)"
    assert [(r.slot, r.env_steps) for r in watch.ended] == [(1, 500)]


def test_actor_that_is_held_back_by_its_shard_does_not_hang(play, ray, told):
    for second in range(0, 200):
        waits = counters(1, 500, is_stepping=False)
        play(float(second), {0: counters(0, second), 1: waits})
    assert (ray.killed, told) == ([], [])


def test_actor_that_stopped_is_ended_after_45_s(watch, play, by_hand, ray, told):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    for second in range(1, 47):
        play(float(second), {0: counters(0, second)})
    assert ray.killed == [by_hand.actors[1]]
    by_hand.actors[1].open("run")[0].answer(ray.dead)
    bury(watch, told)
    assert "actor 1 died (driver heard nothing from actor 1 for 45 s)" in told[0]


def test_newcomer_without_a_place_waits_for_room_and_is_no_death(watch, play, by_hand, ray, told):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    by_hand.actors[1].open("run")[0].answer(ray.dead)
    bury(watch, told, 1.0)
    watch.fill_slots(lambda text, whole="": None, 3.0)
    assert list(watch.placed.values()) == [0]  # at the end of the run nobody waits for it
    by_hand.lack = "wanted CPU 0.5, free CPU 0"
    for second in range(4, 400):
        play(float(second), {0: counters(0, second)})
    said = [text for text in told if "wait for room" in text]
    assert said == ["1 of 2 actors wait for room: each wanted CPU 0.5, free CPU 0"]
    assert by_hand.actors[1] not in ray.killed
    by_hand.lack = None
    play(400.0, {0: counters(0, 400), 1: counters(1, 1, incarnation=1)})
    assert told[-1] == "actor 1 plays again (incarnation 1)"
    assert sorted(watch.placed.values()) == [0, 1]


def test_run_call_that_ray_lost_is_made_again_and_nobody_is_replaced(watch, by_hand, ray, told):
    [run] = by_hand.actors[0].open("run")
    run.answer(ray.lost)
    bury(watch, told)
    assert len(by_hand.actors[0].open("run")) == 1
    assert (told, watch.ended, ray.killed) == ([], [], [])


def test_actor_that_has_not_heard_that_it_should_play_is_called_again(watch, play, by_hand, ray):
    ray.now_s += 60.0
    play(0.0, {0: counters(0, 0, has_begun=False), 1: counters(1, 5)})
    assert len(by_hand.actors[0].open("run")) == 1  # the call may be on its way
    ray.now_s += 2 * LOST_AFTER_S
    play(1.0, {0: counters(0, 0, has_begun=False), 1: counters(1, 6)})
    play(2.0, {0: counters(0, 3), 1: counters(1, 7)})

    lost, again = by_hand.actors[0].open("run")
    assert len(by_hand.actors[1].open("run")) == 1
    assert {ref: slot for ref, slot in watch.runs.items() if slot == 0} == {again: 0}
    assert lost not in watch.runs


def set_ladders(by_hand, slot):
    return [c.arguments for c in by_hand.actors[slot].calls if c.method == "set_ladder"]


def fill(watch, told, now_s, may_fill=lambda slot: True):
    watch.fill_slots(lambda text, whole="": told.append(text), now_s, may_fill)


def test_scaled_up_run_fills_new_slots_and_spreads_the_ladder_over_all(watch, play, by_hand, told):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    watch.scale(4)
    fill(watch, told, 1.0, lambda slot: slot != 3)
    assert by_hand.made == [("fence", 2, 0), ("actor", 2, 0)]  # the shard of slot 3 is away
    fill(watch, told, 2.0)
    assert by_hand.made[2:] == [("fence", 3, 0), ("actor", 3, 0)]
    assert by_hand.ladders == {2: (2, 3), 3: (3, 4)}

    ladders = {0: [0, 2], 1: [1, 2], 2: [2, 3], 3: [3, 4]}
    play(3.0, {slot: counters(slot, 9, ladder=ladder) for slot, ladder in ladders.items()})
    told_first = [set_ladders(by_hand, slot)[:1] for slot in range(4)]
    assert told_first == [[(0, 4)], [(1, 4)], [(2, 4)], []]
    assert told == ["actor 2 plays", "actor 3 plays"]


def test_scaled_down_run_lets_the_highest_slots_drain_and_nobody_dies(
    watch, play, by_hand, ray, told
):
    play(0.0, {0: counters(0, 1), 1: counters(1, 700)})
    leaver = by_hand.actors[1]
    watch.scale(1)
    fill(watch, told, 1.0)
    assert [c.arguments for c in leaver.open("request_stop")] == [(LEAVE_DRAIN_S,)]
    play(2.0, {0: counters(0, 9), 1: counters(1, 710)})
    assert len(leaver.open("request_stop")) == 2  # said with every answer: one call may be lost
    assert set_ladders(by_hand, 0)[0] == (0, 1)
    assert ray.killed == []

    leaver.open("run")[0].answer(counters(1, 720))
    bury(watch, told, 3.0)
    assert told == ["actor 1 has left; 1 are wanted"]
    assert [(r.slot, r.env_steps, r.is_final) for r in watch.ended] == [(1, 720, True)]
    fill(watch, told, 100.0)
    assert (by_hand.made, list(by_hand.actors)) == ([], [0])

    # Whoever fills the slot later can be told from the one that left.
    watch.scale(2)
    fill(watch, told, 101.0)
    assert by_hand.made == [("fence", 1, 1), ("actor", 1, 1)]


def test_scaled_down_slot_of_a_dead_or_unplaced_actor_is_given_back_at_once(
    watch, play, by_hand, ray, told
):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    watch.scale(3)
    fill(watch, told, 0.5)
    by_hand.actors[1].open("run")[0].answer(ray.dead)
    bury(watch, told, 1.0)
    unplaced = by_hand.actors[2]
    watch.scale(1)
    fill(watch, told, 1.1)
    assert ray.killed[-1] is unplaced
    unplaced.open("run")[0].answer(ray.dead)
    bury(watch, told, 1.2)
    fill(watch, told, 100.0)
    assert list(by_hand.actors) == [0]
    assert by_hand.made == [("fence", 2, 0), ("actor", 2, 0)]


def test_slot_without_room_has_no_place_in_the_ladder(watch, play, by_hand, told):
    by_hand.lack = "wanted CPU 0.5, free CPU 0"
    for second in range(8):
        play(float(second), {0: counters(0, second)})
    assert set_ladders(by_hand, 0)[0] == (0, 1)
    assert list(watch.placed.values()) == [0]  # the end of a run waits for those that can answer
    by_hand.lack = None
    play(9.0, {0: counters(0, 9, ladder=[0, 1]), 1: counters(1, 1)})
    assert set_ladders(by_hand, 0)[-1] == (0, 2)
    assert sorted(watch.placed.values()) == [0, 1]


def test_actor_is_asked_where_it_runs_until_it_has_told(watch, play, by_hand, ray, told):
    play(0.0, {})
    assert [c.arguments for c in by_hand.actors[0].open("ping")] == [(True,)]
    play(1.0, {0: counters(0, 1) | {"place": {"host": "h1"}}, 1: counters(1, 1)})
    play(1.3, {})
    assert [c.arguments for c in by_hand.actors[0].open("ping")] == [(False,)]
    assert by_hand.told == {"actor-0-0": {"host": "h1"}}


def test_actor_on_a_host_with_other_versions_is_ended_with_the_reason(
    watch, play, by_hand, ray, told
):
    by_hand.differing = "host h2 has torch 2.10.0 (here 2.13.0)"
    play(0.0, {0: counters(0, 1), 1: counters(1, 1) | {"place": {"host": "h2"}}})
    assert ray.killed == [by_hand.actors[1]]
    by_hand.actors[1].open("run")[0].answer(ray.dead)
    bury(watch, told)
    assert told[0].startswith(
        "actor 1 died (host h2 has torch 2.10.0 (here 2.13.0): install the same on every host)"
    )
    assert by_hand.told == {}


def test_fewer_actors_with_room_than_needed_end_the_run_after_the_wait(
    watch, play, by_hand, ray, told
):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    by_hand.lack = "wanted CPU 0.5, free CPU 0"
    for slot in (0, 1):
        by_hand.actors[slot].open("run")[0].answer(ray.dead)
    bury(watch, told, 1.0)
    fill(watch, told, 3.0)
    for second in range(4, 185):
        play(float(second), {})
    with pytest.raises(ResourcesError, match=r"0 actors .* for 180 s, .* is 1:\na table"):
        play(190.0, {})


def test_shard_in_place_of_another_is_told_to_its_slots_alone(watch, by_hand, new_handle):
    by_hand.shards = [new_handle(), new_handle()]
    assert watch.turn_to(1) == {1: 0}
    [told] = [c.arguments for c in by_hand.actors[1].calls if c.method == "replace_shard"]
    assert told == (by_hand.shards[1],)
    assert not by_hand.actors[0].open("replace_shard")
