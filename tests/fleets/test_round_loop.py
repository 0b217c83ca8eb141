"""Lockstep rounds: their sizes by hand, what playing owes in learning, and the order of calls."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.cluster.plan import RoundPlan
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.types import ReplayStats
from qfleet.fleets.round_loop import run_rounds
from qfleet.replay_server.rate_limiter import EpisodeLimiter, LearningDebt, LearningRule
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans


def resolved(preset="cartpole", **changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(preset, [], {"actors.count": 1, **overrides})
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).fleet


def rounds(*arguments, **changes) -> RoundPlan:
    return resolved(*arguments, **changes).rounds


def stats(size=0, inserted=0, sampled=0, episodes=0):
    return ReplayStats(size, inserted, sampled, 0, float(size), 0, 0, 0, 0, inserted, episodes)


class FakeFleet:
    """One shard that gets exactly what was asked for; notes every call."""

    def __init__(self, plan, transitions_per_episode=20, capacity=10**9):
        self._draws = plan.rounds.learning.draws_per_block
        self._count, self._per_episode = plan.actors, transitions_per_episode
        self._capacity = capacity
        self.inserted = self.sampled = self.episodes = 0
        self.calls = []

    def act(self, n_env_steps):
        self.calls.append(("act", n_env_steps))
        if n_env_steps is None:
            self.inserted += self._per_episode
            self.episodes += 1
        else:
            self.inserted += n_env_steps * self._count

    def shard_stats(self):
        size = min(self.inserted, self._capacity)
        return [stats(size, self.inserted, self.sampled, self.episodes)]

    def learn(self, n_blocks):
        self.calls.append(("learn", n_blocks))
        self.sampled += n_blocks * self._draws
        return 0

    def publish(self):
        self.calls.append(("publish",))


class Rounds:
    """Goes on for `n` rounds, with a block budget when one is given."""

    def __init__(self, n, blocks=None):
        self._left, self._blocks = n, blocks

    def after_round(self, fleet):
        fleet.calls.append(("after",))
        self._left -= 1
        return self._left > 0

    def blocks_left(self, updates_per_block):
        return self._blocks


# Round sizes


@pytest.mark.parametrize(
    ("changes", "n_env_steps", "updates", "draws", "free_blocks"),
    [
        # K = gcd(50, 200, 500) = 50; 50·64 draws / 16 per insert = 200 env steps.
        ({}, 200, 50, 3200, 1),
        ({"actors__count": 4}, 50, 50, 3200, 1),
        ({"actors__count": 3}, 67, 50, 3200, 1),
        # Two blocks of 25 pay for one publish period: the same 200 env steps.
        ({"learner__updates_per_call": 25}, 200, 25, 1600, 2),
        # More draws per transition, fewer env steps; never none.
        ({"replay__samples_per_insert": 3200.0}, 1, 50, 3200, 1),
        ({"replay__samples_per_insert": 1e5}, 1, 50, 3200, 1),
        # Free running: as many env steps as draws of a block, and the blocks of a publish period.
        ({"replay__samples_per_insert": None}, 3200, 50, 3200, 1),
        (
            {"replay__samples_per_insert": None, "learner__updates_per_call": 10},
            *(640, 10, 640, 5),
        ),
    ],
)
def test_rounds_of_a_ratio_have_the_sizes_by_hand(
    changes, n_env_steps, updates, draws, free_blocks
):
    plan = rounds(**changes)
    assert (plan.n_env_steps, plan.updates_per_block) == (n_env_steps, updates)
    assert plan.learning == LearningRule(
        min_size=1000,
        draws_per_block=draws,
        samples_per_insert=changes.get("replay__samples_per_insert", 16.0),
        episodes=None,
        free_blocks=free_blocks,
    )


def test_round_of_the_course_is_one_episode():
    # K divides gcd(1000 publish, 500 target, 5000 eval, 1000 per episode) = 500.
    plan = rounds("tutorial-state")
    assert (plan.n_env_steps, plan.updates_per_block) == (None, 50)
    assert plan.learning.draws_per_block == 1600
    assert plan.learning.episodes == EpisodeLimiter(1000, 32)


# What is owed


def test_debt_warm_up_owes_nothing():
    plan = resolved()
    rule, debt = plan.rounds.learning, LearningDebt()
    assert debt.blocks_due(rule, [stats(size=999, inserted=999)]) == 0
    assert debt.inserted is None
    assert debt.blocks_due(rule, [stats(size=1200, inserted=1200)]) == 0
    assert debt.inserted == 1200
    assert debt.blocks_due(rule, [stats(size=1399, inserted=1399)]) == 0
    assert debt.blocks_due(rule, [stats(size=1400, inserted=1400)]) == 1
    assert debt.blocks_due(rule, [stats(size=1800, inserted=1800)]) == 3


def test_debt_counts_all_shards_together():
    plan = resolved()
    rule, debt = plan.rounds.learning, LearningDebt()
    shard = stats(size=600, inserted=600)
    assert debt.blocks_due(rule, [shard]) == 0
    assert debt.inserted is None
    debt.blocks_due(rule, [shard, shard])
    assert debt.inserted == 1200
    later = [stats(size=700, inserted=700, sampled=100), stats(size=1000, inserted=1000)]
    # 500 transitions · 16 = 8000 owed, 100 drawn: two blocks of 3200.
    assert debt.blocks_due(rule, later) == 2


@given(
    st.lists(st.integers(0, 700), min_size=1, max_size=60),
    st.sampled_from([0.5, 1.0, 16.0, 7.3]),
)
@settings(max_examples=60, deadline=None)
def test_debt_ratio_is_kept_exactly(inserts, samples_per_insert):
    plan = resolved(
        replay__samples_per_insert=samples_per_insert,
        replay__min_size_to_sample=100,
        learner__updates_per_call=10,
        learner__batch_size=8,
    )
    rule, debt = plan.rounds.learning, LearningDebt()
    inserted = sampled = 0
    base = None
    for n in inserts:
        inserted += n
        blocks = debt.blocks_due(rule, [stats(inserted, inserted, sampled)])
        sampled += blocks * rule.draws_per_block
        if base is None and inserted >= 100:
            base = inserted
        owed = 0.0 if base is None else (inserted - base) * samples_per_insert
        assert sampled <= owed + 1e-6
        assert owed - sampled < rule.draws_per_block + 1e-6


def test_debt_refill_after_a_resume_without_contents_gives_no_burst():
    plan = resolved()
    rule = plan.rounds.learning
    # The earlier part had inserted 50,000 and drawn what they owed; the contents are gone.
    debt = LearningDebt(inserted=1000, sampled=0, episodes=0)
    sampled = 16 * 49_000
    for size in (200, 600, 999):
        assert debt.blocks_due(rule, [stats(size, 50_000 + size, sampled)]) == 0
    assert debt.blocks_due(rule, [stats(1000, 51_000, sampled)]) == 0
    assert debt.blocks_due(rule, [stats(1200, 51_200, sampled)]) == 1


def test_debt_of_free_running_is_the_same_blocks_each_round():
    plan = resolved(replay__samples_per_insert=None, learner__updates_per_call=10)
    rule, debt = plan.rounds.learning, LearningDebt()
    assert debt.blocks_due(rule, [stats(size=999, inserted=999)]) == 0
    for inserted in (1000, 1001, 9000):
        assert debt.blocks_due(rule, [stats(inserted, inserted)]) == 5


def test_debt_of_episodes_owes_exactly_its_updates_for_each():
    plan = resolved("tutorial-state", replay__min_size_to_sample=50)
    fleet, debt = FakeFleet(plan), LearningDebt()
    run_rounds(plan.rounds, fleet, Rounds(7), debt)
    # 20 transitions per episode: the third fills the replay and is the first that owes 1000.
    learned = [call[1] for call in fleet.calls if call[0] == "learn"]
    assert learned == [20] * 5
    assert fleet.calls[:5] == [("act", None), ("after",), ("act", None), ("after",), ("act", None)]
    assert fleet.sampled == 5 * 1000 * 32


# The loop


def test_run_rounds_acts_learns_publishes_then_asks():
    plan = resolved(replay__min_size_to_sample=100)
    fleet = FakeFleet(plan)
    run_rounds(plan.rounds, fleet, Rounds(3), LearningDebt())
    assert fleet.calls == [
        ("act", 200),
        ("after",),
        *[("act", 200), ("learn", 1), ("publish",), ("after",)] * 2,
    ]


def test_run_rounds_at_the_update_budget_learns_no_more():
    plan = resolved(replay__min_size_to_sample=100, replay__samples_per_insert=16.0)
    fleet = FakeFleet(plan)
    run_rounds(plan.rounds, fleet, Rounds(3, blocks=0), LearningDebt())
    assert fleet.sampled == 0
    assert ("publish",) not in fleet.calls


def test_run_rounds_learns_at_most_the_blocks_left():
    plan = resolved("tutorial-state")
    fleet = FakeFleet(plan)
    run_rounds(plan.rounds, fleet, Rounds(2, blocks=7), LearningDebt())
    assert [call[1] for call in fleet.calls if call[0] == "learn"] == [7, 7]


def test_run_rounds_begins_with_what_a_budget_cut_off():
    plan = resolved("tutorial-state")
    fleet, debt = FakeFleet(plan, transitions_per_episode=1000), LearningDebt()
    run_rounds(plan.rounds, fleet, Rounds(1, blocks=7), debt)
    assert debt.unfinished_blocks == 13
    fleet.calls.clear()
    run_rounds(plan.rounds, fleet, Rounds(2), debt)
    assert fleet.calls == [
        *[("learn", 13), ("publish",), ("after",)],
        *[("act", None), ("learn", 20), ("publish",), ("after",)],
    ]
    assert debt.unfinished_blocks == 0


def test_run_rounds_plays_first_when_the_replay_came_back_empty():
    plan = resolved("tutorial-state", replay__min_size_to_sample=50)
    fleet, debt = FakeFleet(plan), LearningDebt(0, 0, 0, unfinished_blocks=13)
    run_rounds(plan.rounds, fleet, Rounds(1), debt)
    assert fleet.calls == [("act", None), ("after",)]
    assert debt.unfinished_blocks == 0


@given(st.integers(1, 5), st.sampled_from([1.0, 4.0, 16.0]), st.integers(20, 60))
@settings(max_examples=25, deadline=None)
def test_run_rounds_draws_per_insert_is_the_configured(count, samples_per_insert, rounds):
    plan = resolved(
        actors__count=count,
        replay__samples_per_insert=samples_per_insert,
        replay__min_size_to_sample=1,
    )
    fleet = FakeFleet(plan)
    debt = LearningDebt()
    run_rounds(plan.rounds, fleet, Rounds(rounds), debt)
    owed = (fleet.inserted - debt.inserted) * samples_per_insert
    assert 0 <= owed - fleet.sampled < 3200


class HungFleet(FakeFleet):
    """Its learner never answers."""

    def learn(self, n_blocks):
        raise WaitTimeoutError(f"driver waited 1800 s for the learner's {n_blocks} blocks")


def test_run_rounds_says_what_was_owed_when_a_role_does_not_answer():
    plan = resolved(replay__min_size_to_sample=100)
    with pytest.raises(
        WaitTimeoutError,
        match=r"the learner's 1 blocks; replay holds 400 of 100 needed; 200 inserts since then pay "
        r"for 3200 samples, 0 were drawn",
    ):
        run_rounds(plan.rounds, HungFleet(plan), Rounds(3), LearningDebt())


@pytest.mark.parametrize(
    ("preset", "changes", "debt", "line"),
    [
        ("cartpole", {}, LearningDebt(), "replay holds 30 of 1000 needed; nothing is owed yet"),
        (
            "cartpole",
            {"replay__samples_per_insert": None},
            LearningDebt(10, 0, 0),
            "replay holds 30 of 1000 needed; no ratio is kept",
        ),
        (
            "tutorial-state",
            {},
            LearningDebt(10, 64, 1),
            "2 episodes allow 64000 samples (1000 updates of 32 each), 36 were drawn",
        ),
    ],
)
def test_debt_explains_itself(preset, changes, debt, line):
    rule = rounds(preset, **changes).learning
    assert line in debt.explain(rule, [stats(30, 30, sampled=100, episodes=3)])
