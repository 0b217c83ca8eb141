"""What a learner that keeps frames says it has, and what it may no longer take."""

from __future__ import annotations

import dataclasses

import numpy as np

from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.types import ReplayStats, ShardSample
from qfleet.learner.frame_receipts import N_SAID, FrameReceipts

NONE = np.empty(0)
WHOLE = ShardSample(0, {}, NONE, NONE, ReplayStats(*[0] * len(ReplayStats._fields)), 0.0)


def part(receipts, answer):
    name = receipts.reader().name
    news = NewFrames(name, answer, 9, np.empty(0, np.int64), np.empty((0, 2, 2), np.uint8))
    return dataclasses.replace(WHOLE, new_frames=news)


def test_requests_tell_of_the_newest_answers_that_were_taken():
    receipts = FrameReceipts(by_place=True)
    assert receipts.reader().received == ()
    for answer in range(1, N_SAID + 3):
        receipts.take(part(receipts, answer))
    assert receipts.reader().received == tuple(range(3, N_SAID + 3))


def test_answers_are_taken_in_the_order_of_their_draws():
    receipts = FrameReceipts(by_place=True)
    receipts.take(part(receipts, 4))
    assert [receipts.is_overtaken(part(receipts, n)) for n in (3, 4, 5)] == [True, True, False]


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
