"""Blocks from shards played by hand: all drawn from, lost calls made again, one replaced."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import decode_priority_update
from qfleet.common.sample_message import encode_shard_sample
from qfleet.common.stage_clock import StageClock
from qfleet.common.types import EnvironmentSpec, ReplayStats, ShardSample
from qfleet.learner import remote_feed, remote_line
from qfleet.learner.block_runner import BlockPlanner
from qfleet.learner.plan import REQUESTS_IN_FLIGHT
from qfleet.learner.remote_feed import ReplayFeed
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (2,), "<f4", 2, 475.0, 500)
BATCH = 64


def stats(mass, inserted=None):
    inserted = int(mass) if inserted is None else inserted
    return ReplayStats(int(mass), inserted, 0, 0, float(mass), 0, 0, 0, 0, env_steps=inserted)


def draws(shard, n, mass):
    """A shard's answer, as the message it sends."""
    numbers = np.arange(n)
    observation = np.full((n, 2), shard, "<f4")
    columns = {
        "observation": observation,
        "action": (numbers % 2).astype("<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.full(n, 0.99, "<f4"),
        "next_observation": observation,
    }
    keys, probabilities = numbers.astype("<i8"), np.full(n, 1 / mass)
    return encode_shard_sample(ShardSample(shard, columns, keys, probabilities, stats(mass), 0.0))


class Fleet:
    """Shards that answer whatever is asked whenever the learner waits, but for what is held up."""

    def __init__(self, ray, handles, masses, sampling="uniform"):
        self.ray, self.handles, self.masses = ray, handles, masses
        self.silent, self.dead = set(), set()
        self.loses_updates = False
        config = Config.model_validate(
            {
                "replay": {"sampling": sampling},
                "learner": {"batch_size": BATCH, "updates_per_call": 1, "compile": "off"},
                "actors": {"count": 1},
            }
        )
        plan = run_plans(resolve_config(config, SPEC, cpus=2, gpus=0)).learner
        self.stop = threading.Event()
        self.feed = ReplayFeed(SPEC, BlockPlanner(plan), 1, self.stop, StageClock())
        self.feed.set_shards(handles)
        self.learner = SimpleNamespace(learner_steps=0, fleet_env_steps=0, params_version=0)
        self.stop.wait = lambda timeout: self.serve()
        ray.on_idle = self.serve

    def serve(self):
        self.ray.now_s += 0.001
        for index, handle in enumerate(self.handles):
            if index in self.dead:
                for call in [*handle.open("stats"), *handle.open("sample")]:
                    call.answer(self.ray.dead)
            if index in self.silent | self.dead:
                continue
            for call in handle.open("stats"):
                call.answer(list(stats(self.masses[index])))
            for call in handle.open("sample")[:1]:  # one at a time, in order
                call.answer(draws(index, call.arguments[0], self.masses[index]))
            for call in handle.open("update_priorities"):
                call.answer(self.ray.lost if self.loses_updates else 1)

    def asked(self, index):
        return sum(c.arguments[0] for c in self.handles[index].calls if c.method == "sample")


@pytest.fixture
def ray(hand_ray):
    return hand_ray(remote_feed, remote_line)


@pytest.fixture
def make_fleet(ray, new_handle):
    return lambda masses, **options: Fleet(ray, [new_handle() for _ in masses], masses, **options)


@pytest.mark.parametrize("masses", [[300.0, 100.0], [50.0, 20.0, 10.0, 20.0]])
def test_every_shard_is_drawn_from_by_its_mass(make_fleet, masses):
    """χ² over 12,800 draws, also where a shard that was empty at first fills later."""
    fleet = make_fleet([masses[0], *[0.0] * (len(masses) - 1)])
    blocks = fleet.feed.blocks(fleet.learner)
    for _ in range(3):
        assert set(next(blocks).shards.ravel().tolist()) == {0}
    fleet.masses = masses
    for _ in range(4):  # those that were under way are split by the old masses
        next(blocks)

    drawn = np.zeros(len(masses))
    for _ in range(200):
        drawn += np.bincount(next(blocks).shards.ravel(), minlength=len(masses))

    expected = drawn.sum() * np.array(masses) / sum(masses)
    chi_squared = ((drawn - expected) ** 2 / expected).sum()
    assert drawn.sum() == 200 * BATCH
    assert chi_squared < {2: 10.8, 4: 16.3}[len(masses)]  # p = 0.001
    assert fleet.learner.fleet_env_steps == sum(masses)


def test_draws_say_which_version_was_published_before_them(make_fleet):
    fleet = make_fleet([3.0])
    fleet.learner.params_version = 4
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    asked = len([call for call in fleet.handles[0].calls if call.method == "sample"])
    fleet.learner.params_version = 5
    next(blocks)

    calls = [call for call in fleet.handles[0].calls if call.method == "sample"]
    assert len(calls) > asked
    assert {call.arguments[2] for call in calls[:asked]} == {4}
    assert {call.arguments[2] for call in calls[asked:]} == {5}


def test_nothing_is_drawn_while_no_shard_holds_anything(make_fleet):
    fleet = make_fleet([0.0, 0.0])
    served = []

    def serve():
        served.append(1)
        if len(served) == 50:
            fleet.masses = [0.0, 9.0]
        fleet.serve()

    fleet.ray.on_idle = serve
    fleet.stop.wait = lambda timeout: serve()

    sample = next(fleet.feed.blocks(fleet.learner))

    assert set(sample.shards.ravel().tolist()) == {1}
    assert fleet.asked(0) == 0


def test_nothing_is_drawn_until_every_shard_has_told_its_mass(make_fleet):
    """A resumed learner's first draws once all came from the shard that answered first."""
    fleet = make_fleet([300.0, 300.0])
    fleet.silent = {1}
    served = []

    def serve():
        served.append(fleet.asked(0) + fleet.asked(1))
        if len(served) == 20:
            fleet.silent = set()
        fleet.serve()

    fleet.ray.on_idle = serve
    fleet.stop.wait = lambda timeout: serve()

    sample = next(fleet.feed.blocks(fleet.learner))

    assert len(served) > 20
    assert served[:20] == [0] * 20
    assert set(sample.shards.ravel().tolist()) == {0, 1}


def test_shard_that_died_before_it_told_holds_nobody_back(make_fleet):
    fleet = make_fleet([300.0, 300.0])
    fleet.dead = {1}
    assert set(next(fleet.feed.blocks(fleet.learner)).shards.ravel().tolist()) == {0}


def test_counters_that_were_lost_are_asked_for_again_before_ray_says_so(ray, new_handle):
    handle = new_handle()
    line = remote_line.ShardLine(0, handle, SPEC)
    line.ask_stats()
    ray.now_s += remote_line.FIRST_SILENCE_S
    line.ask_stats()
    assert len(handle.open("stats")) == 1
    ray.now_s += 0.01
    line.ask_stats()
    line.ask_stats()
    assert line.awaited() == handle.open("stats") == handle.calls[:2]
    handle.calls[0].answer(list(stats(7)))  # late, not lost: it counts as well
    line.take(handle.calls[0])
    assert (line.stats.mass, line.awaited()) == (7.0, [])


def test_draws_that_ray_lost_are_asked_for_again(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    before = fleet.asked(0)
    for call in fleet.handles[0].open("sample"):
        call.answer(fleet.ray.lost)

    next(blocks)

    assert fleet.asked(0) - before <= 4 * BATCH


def test_draws_held_back_are_asked_for_again_without_end(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    serve, held = fleet.serve, []

    def hold():
        fleet.ray.now_s += 0.2
        calls = fleet.handles[0].open("sample")
        if fleet.ray.now_s < 1000.0 + 3600.0:
            held.extend(calls[:1])
            calls[0].answer(None)
        else:
            serve()

    fleet.ray.on_idle = hold

    next(blocks)
    assert len(held) > 1000


def test_overtaken_draws_are_asked_for_again_at_once(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    [lost] = fleet.handles[0].open("sample")
    serve, before_s = fleet.serve, fleet.ray.now_s

    def serve_later_ones():
        fleet.ray.now_s += 0.001
        for call in fleet.handles[0].open("sample"):
            if call is not lost:
                call.answer(draws(0, BATCH, 9.0))
                return

    fleet.ray.on_idle = serve_later_ones
    for _ in range(3):
        next(blocks)

    assert not lost.outcome
    asked = [call for call in fleet.handles[0].calls if call.method == "sample"]
    assert len(asked) == 1 + 1 + 3 + 1  # first, lost, its second call among those, one open
    assert fleet.ray.now_s - before_s < remote_line.FIRST_SILENCE_S
    fleet.ray.on_idle = serve
    next(blocks)  # the late answer is let go


def test_silence_is_asked_into_and_the_late_answer_let_go(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    lost = fleet.handles[0].open("sample")
    serve = fleet.serve

    def serve_all_but_the_lost():
        for call in fleet.handles[0].open("sample"):
            if call not in lost:
                call.answer(draws(0, call.arguments[0], 9.0))

    fleet.ray.on_idle = serve_all_but_the_lost
    for _ in range(5):
        next(blocks)
    for call in lost:
        call.answer(draws(0, call.arguments[0], 9.0))
    fleet.ray.on_idle = serve
    for _ in range(5):
        next(blocks)


def test_shard_that_answers_soon_is_asked_again_soon_and_then_after_twice_as_long(ray, new_handle):
    handle = new_handle()
    line = remote_line.ShardLine(0, handle, SPEC)
    for _ in range(30):
        line.ask(BATCH, 0)
        ray.now_s += 0.003
        handle.calls[-1].answer(draws(0, BATCH, 9.0))
        line.take(handle.calls[-1])
    asked = len(handle.calls)
    line.ask(BATCH, 0)  # lost
    moments, began_s = [], ray.now_s
    while len(moments) < 3:
        assert line.silence_ends_s > ray.now_s
        ray.now_s = line.silence_ends_s + 1e-6
        line.ask_again_after_silence()
        moments.append(ray.now_s - began_s)
    least_s = remote_line.LEAST_SILENCE_S
    assert [len(handle.calls) - asked, line.silence_ends_s > ray.now_s] == [4, True]
    assert moments == pytest.approx([n * (0.003 + least_s) for n in (1, 3, 7)], rel=1e-3)
    handle.calls[-1].answer(draws(0, BATCH, 9.0))
    line.take(handle.calls[-1])
    assert line.silence_ends_s == math.inf  # nothing is asked


def test_shard_that_says_nothing_is_given_up(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    fleet.silent = {0}

    with pytest.raises(WaitTimeoutError, match="for a sample of replay shard 0"):
        next(blocks)
    assert fleet.asked(0) <= (3 + 2 * remote_line.MAX_CALLS) * BATCH


def test_others_are_drawn_from_while_one_shard_is_gone_and_the_new_one_joins(
    make_fleet, new_handle
):
    fleet = make_fleet([9.0, 9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    for _ in range(3):
        next(blocks)
    fleet.dead = {1}
    fleet.serve()

    for _ in range(2):  # what had come before
        next(blocks)
    for _ in range(20):
        assert set(next(blocks).shards.ravel().tolist()) == {0}

    fleet.handles[1] = new_handle()
    fleet.feed.replace_shard(1, fleet.handles[1])
    fleet.dead = set()
    drawn = np.zeros(2)
    for _ in range(60):
        drawn += np.bincount(next(blocks).shards.ravel(), minlength=2)
    assert drawn.min() > 0.3 * drawn.sum()


def test_shard_that_rests_holds_nobody_back_and_is_drawn_from_again_afterwards(make_fleet):
    fleet = make_fleet([9.0, 9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    for _ in range(4):
        next(blocks)
    serve, asked_until_s = fleet.serve, fleet.ray.now_s + 5.0

    def hold():
        """Shard 1 holds back what is asked of it; the driver says after a while that it rests."""
        serve()
        for call in fleet.handles[1].open("sample"):
            call.answer(None)
        if fleet.ray.now_s > asked_until_s:
            fleet.feed.let_rest([1])

    fleet.silent, fleet.ray.on_idle = {1}, hold
    for _ in range(2):  # what had come before, or had no draws of shard 1
        next(blocks)
    asked = fleet.asked(1)
    for _ in range(20):
        assert set(next(blocks).shards.ravel().tolist()) == {0}
    assert fleet.ray.now_s > asked_until_s
    assert fleet.asked(1) == asked

    fleet.silent, fleet.ray.on_idle = set(), serve
    fleet.feed.let_rest([])
    drawn = np.zeros(2)
    for _ in range(60):
        drawn += np.bincount(next(blocks).shards.ravel(), minlength=2)
    assert drawn.min() > 0.3 * drawn.sum()


def test_shard_replaced_before_its_death_is_noticed_answers_what_was_open(make_fleet, new_handle):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    fleet.handles[0] = new_handle()
    fleet.feed.replace_shard(0, fleet.handles[0])

    for _ in range(5):
        next(blocks)


def test_shard_whose_death_is_told_after_its_replacement_is_asked_what_was_open(
    make_fleet, new_handle
):
    """Priorities tell it: the driver was faster, while the learner still trained on a block."""
    fleet = make_fleet([9.0], sampling="prioritized")
    first = fleet.handles[0]

    def serve_draws():
        for call in [*first.open("stats"), *first.open("sample")[:1]]:
            is_draws = call.method == "sample"
            call.answer(draws(0, call.arguments[0], 9.0) if is_draws else list(stats(9.0)))

    fleet.ray.on_idle = serve_draws
    fleet.stop.wait = lambda timeout: serve_draws()
    blocks = fleet.feed.blocks(fleet.learner)
    for _ in range(remote_line.UPDATES_UNDER_WAY + 1):
        sample = next(blocks)
        fleet.feed.give_back(sample, np.ones(sample.item_keys.shape))
    n_open = len(first.open("sample"))
    for call in first.calls:
        call.outcome = call.outcome or [fleet.ray.dead]
    fleet.handles[0] = new_handle()
    fleet.feed.replace_shard(0, fleet.handles[0])
    fleet.ray.on_idle = fleet.serve
    fleet.stop.wait = lambda timeout: fleet.serve()

    for _ in range(5):
        next(blocks)

    assert n_open == REQUESTS_IN_FLIGHT - 1
    assert len(fleet.handles[0].open("sample")) == REQUESTS_IN_FLIGHT - 1


def test_no_shard_left_ends_the_wait(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    fleet.dead = {0}
    fleet.serve()
    fleet.stop.wait = lambda timeout: setattr(fleet.ray, "now_s", fleet.ray.now_s + 1.0)

    with pytest.raises(WaitTimeoutError, match="a replay shard in place of those that died"):
        next(blocks)


def test_priorities_go_to_their_shard_and_again_when_they_are_lost(make_fleet):
    fleet = make_fleet([9.0, 9.0], sampling="prioritized")
    blocks = fleet.feed.blocks(fleet.learner)
    sent = 0
    for round_ in range(8):
        sample = next(blocks)
        fleet.feed.give_back(sample, np.full(sample.item_keys.shape, float(round_)))
        sent += sample.item_keys.size
        fleet.loses_updates = round_ == 3
        fleet.serve()
    fleet.loses_updates = False
    for _ in range(4):
        next(blocks)

    n_lost = 0
    for handle in fleet.handles:
        calls = [c for c in handle.calls if c.method == "update_priorities"]
        lost = [c for c in calls if c.outcome and isinstance(c.outcome[0], Exception)]
        for call in lost:
            assert sum(c.arguments == call.arguments for c in calls) == 2
        n_lost += len(lost)
        sent -= sum(
            len(decode_priority_update(message).item_keys)
            for call in calls
            if call not in lost
            for message in call.arguments
        )
    assert n_lost > 0
    assert sent == 0


def test_stop_ends_the_blocks(make_fleet):
    fleet = make_fleet([9.0])
    blocks = fleet.feed.blocks(fleet.learner)
    next(blocks)
    fleet.stop.set()

    assert next(blocks, None) is None
