"""The rules for actors that die: waits, incarnations, giving up, and when the run ends."""

from __future__ import annotations

import pytest

from qfleet.common.errors import RoleLostError, WaitTimeoutError
from qfleet.fleets.supervisor import (
    MAX_DEATHS_WITHOUT_PROGRESS,
    STALL_TIMEOUT_S,
    ActorSupervisor,
    ShardSupervisor,
    StallWatch,
)


def supervisor(n_slots=2, min_count=1, incarnation=0):
    subject = ActorSupervisor(min_count, incarnation)
    assert [subject.add(slot) for slot in range(n_slots)] == n_slots * [incarnation]
    return subject


def test_due_of_living_actors_is_empty():
    assert supervisor().due(1e9) == {}


def test_death_is_filled_once_under_the_next_incarnation():
    subject = supervisor(incarnation=65536)
    text = subject.died(1, "killed", env_steps=500, learner_steps=10, now_s=10.0)
    assert "actor 1" in text
    assert "killed" in text
    assert "0.5 s" in text
    assert subject.due(10.49) == {}
    assert subject.due(10.5) == {1: 65537}
    assert subject.due(1e9) == {}


def test_waits_double_without_progress():
    subject = supervisor(n_slots=1)
    now_s = 0.0
    for expected_s in (1.0, 2.0, 4.0, 8.0):
        subject.died(0, "no luck", env_steps=0, learner_steps=0, now_s=now_s)
        assert subject.due(now_s + expected_s - 0.001) == {}
        assert list(subject.due(now_s + expected_s)) == [0]
        now_s += 100.0


def test_wait_after_progress_is_short_again():
    subject = supervisor(n_slots=1)
    for death in range(3):
        subject.died(0, "no luck", env_steps=0, learner_steps=0, now_s=0.0)
        assert subject.due(1e9) == {0: death + 1}
    subject.died(0, "killed", env_steps=1, learner_steps=10, now_s=0.0)
    assert subject.due(0.5) == {0: 4}


def test_actor_that_plays_may_die_for_ever():
    subject = supervisor(n_slots=1)
    incarnations = []
    for death in range(50):
        subject.died(0, "preempted", env_steps=1000, learner_steps=death + 1, now_s=float(death))
        incarnations.append(subject.due(death + 0.5)[0])
    assert incarnations == list(range(1, 51))


def test_actor_that_dies_again_and_again_before_anything_is_learned_ends_the_run():
    subject = supervisor(n_slots=1)
    for death in range(MAX_DEATHS_WITHOUT_PROGRESS):
        # The first death is forgiven: something was learned before it, and nothing since.
        subject.died(0, "observation is NaN", env_steps=50, learner_steps=700, now_s=0.0)
        assert subject.due(1e9) == {0: death + 1}
    with pytest.raises(RoleLostError, match=r"5 times without anything learned .* is NaN"):
        subject.died(0, "observation is NaN", env_steps=50, learner_steps=700, now_s=0.0)


def test_slot_is_given_up_after_five_deaths_without_progress():
    subject = supervisor(n_slots=2)
    for _ in range(MAX_DEATHS_WITHOUT_PROGRESS - 1):
        subject.died(0, "no module my_env", env_steps=0, learner_steps=0, now_s=0.0)
        assert 0 in subject.due(1e9)
    text = subject.died(0, "no module my_env", env_steps=0, learner_steps=0, now_s=0.0)
    assert "given up" in text
    assert subject.due(1e12) == {}
    subject.died(1, "killed", env_steps=10, learner_steps=10, now_s=0.0)
    assert subject.due(0.5) == {1: 1}


def test_fewer_than_min_count_ends_the_run_with_the_last_reason():
    subject = supervisor(n_slots=2, min_count=2)
    for _ in range(MAX_DEATHS_WITHOUT_PROGRESS - 1):
        subject.died(1, "no module my_env", env_steps=0, learner_steps=0, now_s=0.0)
        subject.due(1e9)
    with pytest.raises(RoleLostError, match=r"1 actors are left.*min_count is 2.*my_env"):
        subject.died(1, "no module my_env", env_steps=0, learner_steps=0, now_s=0.0)
    assert RoleLostError.exit_code == 5


def test_min_count_counts_slots_that_wait_for_their_restart():
    subject = supervisor(n_slots=2, min_count=2)
    subject.died(0, "killed", env_steps=5, learner_steps=10, now_s=0.0)
    subject.died(1, "killed", env_steps=5, learner_steps=10, now_s=0.0)
    assert subject.due(0.5) == {0: 1, 1: 1}


def test_slots_are_counted_apart():
    subject = supervisor(n_slots=2)
    for _ in range(MAX_DEATHS_WITHOUT_PROGRESS - 1):
        for slot in (0, 1):
            subject.died(slot, "no luck", env_steps=0, learner_steps=0, now_s=0.0)
        subject.due(1e9)
    assert [state.incarnation for state in subject.slots.values()] == [4, 4]
    assert not any(state.given_up for state in subject.slots.values())


def test_due_slot_that_may_not_be_filled_yet_stays_due():
    subject = supervisor(n_slots=2)
    for slot in (0, 1):
        subject.died(slot, "killed", env_steps=1, learner_steps=1, now_s=0.0)
    assert subject.due(1.0, lambda slot: slot != 1) == {0: 1}
    assert subject.due(2.0) == {1: 1}


def test_lost_shard_begins_anew_at_once_and_later_after_waits_until_it_was_in_vain_too_often():
    subject = ShardSupervisor(max_in_vain=3)
    assert [subject.died(0, "killed", 10.0) for _ in range(3)] == [10.0, 12.0, 14.0]
    assert subject.died(1, "killed", 10.0) == 10.0  # counted apart
    with pytest.raises(RoleLostError, match=r"no memory \(run.max_role_restarts = 3\)"):
        subject.died(0, "no memory", 10.0)


def test_shard_that_served_in_between_may_be_lost_for_ever():
    subject = ShardSupervisor(max_in_vain=1)
    for _ in range(20):
        assert subject.died(0, "killed", 5.0) == 5.0
        subject.served(0)
    with pytest.raises(RoleLostError, match="max_role_restarts = 0"):
        ShardSupervisor(max_in_vain=0).died(0, "killed", 5.0)


def test_stall_watch_raises_only_when_neither_side_moves():
    watch = StallWatch()
    watch.observe(10, 0, now_s=0.0)
    watch.observe(11, 0, now_s=STALL_TIMEOUT_S)  # an actor moved
    watch.observe(11, 50, now_s=2 * STALL_TIMEOUT_S)  # the learner moved
    watch.observe(11, 50, now_s=3 * STALL_TIMEOUT_S)  # not longer than the limit yet
    limiters = ["shard 0: replay holds 6 of 4 needed", "shard 1: no ratio is kept"]
    with pytest.raises(
        WaitTimeoutError,
        match=r"env step after 11 .* update after 50: .*; shard 0: .* 6 of 4 needed; shard 1: no",
    ):
        watch.observe(11, 50, now_s=3 * STALL_TIMEOUT_S + 0.1, limiters=limiters)
