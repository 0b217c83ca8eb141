"""Actors that hang, say nothing, have no place or lose a call, with roles played by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.fleets.actor_watch import ActorWatch

STEP_TIMEOUT_S = 45.0


def counters(slot, env_steps, *, is_stepping=True, incarnation=0):
    return {
        "slot": slot,
        "env_steps": env_steps,
        "produced": env_steps,
        "unsent": 0,
        "params_learner_step": 0,
        "times": {},
        "episodes": 0,
        "is_stepping": is_stepping,
        "incarnation": incarnation,
    }


@pytest.fixture
def told():
    return []


@pytest.fixture
def watch(by_hand):
    plan = SimpleNamespace(step_timeout_s=STEP_TIMEOUT_S, min_actors=1)
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


def test_newcomer_without_a_place_waits_for_cpus_and_is_no_death(watch, play, by_hand, ray, told):
    play(0.0, {0: counters(0, 1), 1: counters(1, 1)})
    by_hand.actors[1].open("run")[0].answer(ray.dead)
    bury(watch, told, 1.0)
    watch.fill_slots(lambda text, whole="": None, 3.0)
    by_hand.lack = "wanted 0.5, free 0"
    for second in range(4, 400):
        play(float(second), {0: counters(0, second)})
    said = {text for text in told if "waiting for CPUs" in text}
    assert said == {"actor 1 (incarnation 1) is waiting for CPUs: wanted 0.5, free 0"}
    assert by_hand.actors[1] not in ray.killed
    by_hand.lack = None
    play(400.0, {0: counters(0, 400), 1: counters(1, 1, incarnation=1)})
    assert told[-1] == "actor 1 plays again (incarnation 1)"


def test_run_call_that_ray_lost_is_made_again_and_nobody_is_replaced(watch, by_hand, ray, told):
    [run] = by_hand.actors[0].open("run")
    run.answer(ray.lost)
    bury(watch, told)
    assert len(by_hand.actors[0].open("run")) == 1
    assert (told, watch.ended, ray.killed) == ([], [], [])
