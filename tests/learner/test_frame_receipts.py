"""What a learner that keeps frames says it has, and what it may no longer take."""

from __future__ import annotations

import dataclasses

import numpy as np

from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.types import ReplayStats, ShardSample
from qfleet.learner.frame_receipts import N_SAID, FrameReceipts

NONE = np.empty(0)
WHOLE = ShardSample(0, {}, NONE, NONE, ReplayStats(*[0] * len(ReplayStats._fields)), 0.0)


def part(receipts, answer, named=(), new=None, n_places=9):
    """Draws that name the places `named`; `new`: places that come with them, and since when."""
    new = {} if new is None else new
    places, since = (np.array(list(ints), np.int64) for ints in (new, new.values()))
    frames = np.empty((len(new), 2, 2), np.uint8)
    news = NewFrames(receipts.reader().name, answer, n_places, places, frames, since)
    stacks = np.array(named, np.int32).reshape(-1, 1)
    columns = {"observation": stacks, "next_observation": stacks[:1]}
    return dataclasses.replace(WHOLE, columns=columns, new_frames=news)


def test_requests_tell_of_the_newest_answers_that_were_taken():
    receipts = FrameReceipts(by_place=True)
    assert receipts.reader().received == ()
    for answer in range(1, N_SAID + 3):
        receipts.take(part(receipts, answer))
    assert receipts.reader().received == tuple(range(3, N_SAID + 3))


def test_draws_are_overtaken_when_a_frame_that_they_name_was_replaced_after_them():
    receipts = FrameReceipts(by_place=True)
    receipts.take(part(receipts, 2, [0, 1, 2], {0: 2, 1: 2, 2: 2}))
    receipts.take(part(receipts, 5, [1, 3, 4], {1: 4, 3: 3, 4: 2}))

    def is_overtaken(answer, *named):
        return receipts.is_overtaken(part(receipts, answer, named))

    assert is_overtaken(3, 0, 1)  # 1 lay there from answer 4 on, so not at answer 3
    assert not is_overtaken(4, 0, 1)
    assert not is_overtaken(3, 3, 4, 0)  # those were there already
    assert is_overtaken(2, 4, 3)
    assert not is_overtaken(2, 4, 8)
    assert not is_overtaken(6, 0, 1)


def test_an_older_answer_that_is_taken_later_is_told_and_leaves_what_is_newer():
    receipts = FrameReceipts(by_place=True)
    receipts.take(part(receipts, 4, [0], {0: 4}))
    late = part(receipts, 3, [1], {1: 3})
    assert not receipts.is_overtaken(late)
    receipts.take(late)
    assert receipts.reader().received == (4, 3)
    assert receipts.is_overtaken(part(receipts, 3, [0, 1]))
    assert receipts.is_overtaken(part(receipts, 2, [1]))
    assert not receipts.is_overtaken(part(receipts, 3, [1]))


def test_memory_that_has_grown():
    receipts = FrameReceipts(by_place=True)
    receipts.take(part(receipts, 4, [2], {2: 4}, n_places=3))
    receipts.take(part(receipts, 5, [7], {7: 5}, n_places=9))
    assert receipts.is_overtaken(part(receipts, 3, [2]))
    assert receipts.is_overtaken(part(receipts, 4, [7]))
    assert not receipts.is_overtaken(part(receipts, 4, [2, 20], n_places=30))


def test_no_two_readers_have_one_name_and_none_takes_what_was_meant_for_another():
    """A shard's second process counts its answers anew."""
    before, receipts = FrameReceipts(by_place=True), FrameReceipts(by_place=True)
    assert before.reader().name != receipts.reader().name
    assert receipts.is_overtaken(part(before, 1))


def test_whole_stacks_are_asked_for_and_never_overtaken():
    receipts = FrameReceipts(by_place=False)
    receipts.take(WHOLE)
    assert receipts.reader() is None
    assert not receipts.is_overtaken(WHOLE)
