"""Which shards rest, by the slots that write: a table, and who is told."""

from __future__ import annotations

import pytest

from qfleet.fleets.watches.rest_watch import RestWatch


@pytest.fixture
def learner(hand_ray, new_handle):
    hand_ray()
    return new_handle()


def told(learner):
    return [list(call.arguments[0]) for call in learner.calls if call.method == "let_rest"]


@pytest.mark.parametrize(
    ("n_shards", "writers", "resting"),
    [
        (1, [0, 1], []),
        (2, [0, 1, 2], []),
        (2, [0, 2, 4], [1]),
        (2, [5], [0]),
        (4, [0], [1, 2, 3]),
        (4, [3, 7, 9], [0, 2]),
        (2, [], []),  # then no shard is better than another
    ],
)
def test_shard_without_a_writing_slot_rests(learner, n_shards, writers, resting):
    said = []
    RestWatch(n_shards).observe(writers, [], learner, said.append)
    assert told(learner) == ([resting] if resting else [])
    assert [text.split()[6].rstrip(":") for text in said] == [str(shard) for shard in resting]


def test_learner_is_told_again_until_it_knows_and_the_user_once(learner):
    watch, said = RestWatch(2), []
    for writers, known in [([0], []), ([0], []), ([0], [1]), ([0, 1], [1]), ([0, 1], [])]:
        watch.observe(writers, known, learner, said.append)
    assert told(learner) == [[1], [1], []]
    assert said == [
        "no actor writes to replay shard 1: it rests, the others are drawn from",
        "replay shard 1 is written to and drawn from again",
    ]
