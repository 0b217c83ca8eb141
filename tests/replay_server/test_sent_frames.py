"""What counts as had by the reader of a shard, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.common.pixels.new_frames import FrameReader
from qfleet.replay_server.sent_frames import MAX_UNDER_WAY, SentFrames


@pytest.fixture
def sent() -> SentFrames:
    return SentFrames(6)


def answer(sent: SentFrames, received: tuple[int, ...], *places: int, name: str = "a") -> list[int]:
    """Number of the answer, and the places whose frames go with it."""
    number, new, _ = sent.answer(FrameReader(name, received), np.array(places, dtype=np.int32))
    return [number, *new.tolist()]


def test_frame_goes_with_every_answer_until_the_reader_says_that_one_came(sent):
    assert answer(sent, (), 3, 1, 3) == [1, 1, 3]
    assert answer(sent, (), 1, 2) == [2, 1, 2]
    assert answer(sent, (1,), 3, 2, 1) == [3, 2]
    assert answer(sent, (1, 3), 1, 2, 3) == [4]  # 2 came with answer 3, if not with answer 2


def test_frame_that_every_request_names_is_had_although_receipts_lag(sent):
    """Two requests are in flight: each says what came with the one before the last."""
    sent_with = [answer(sent, tuple(range(1, number - 1)), 0)[1:] for number in range(1, 6)]
    assert sent_with == [[0], [0], [], [], []]


def test_frames_tell_which_answer_was_the_first_to_carry_them(sent):
    def since(received, *places):
        return sent.answer(FrameReader("a", received), np.array(places))[2].tolist()

    assert since((), 0, 1) == [1, 1]
    assert since((), 0, 2) == [1, 2]
    sent.overwritten(np.array([0]))
    assert since((), 0, 1, 2) == [3, 1, 2]
    assert since((3,), 0, 1, 2, 4) == [4]


def test_frame_of_a_lost_answer_is_sent_again(sent):
    answer(sent, (), 0)  # lost
    assert answer(sent, (), 1) == [2, 1]
    assert answer(sent, (2,), 0, 1) == [3, 0]
    assert answer(sent, (2, 3), 0, 1) == [4]


def test_frame_that_was_overwritten_is_sent_again(sent):
    answer(sent, (), 0, 1)
    answer(sent, (1,), 0)
    sent.overwritten(np.array([0]))
    assert answer(sent, (1,), 0, 1) == [3, 0]


def test_frame_that_was_overwritten_while_its_answer_was_under_way_is_sent_again(sent):
    """What the reader says it took is the frame of before."""
    answer(sent, (), 0, 1)
    sent.overwritten(np.array([0]))
    assert answer(sent, (), 0) == [2, 0]
    assert answer(sent, (1,), 0, 1) == [3, 0]
    assert answer(sent, (1, 2), 0, 1) == [4]


def test_another_reader_has_nothing_and_so_has_the_first_when_it_comes_back(sent):
    answer(sent, (), 0)
    assert answer(sent, (1,), 0) == [2]
    assert answer(sent, (), 0, name="b") == [3, 0]
    assert answer(sent, (1, 2), 0) == [4, 0]  # late, from a learner that died: it costs a frame
    assert answer(sent, (3,), 0, name="b") == [5, 0]


def test_new_places_were_not_sent(sent):
    answer(sent, (), 5)
    sent.grow(3)
    assert answer(sent, (1,), 5, 6, 8) == [2, 6, 8]


def test_after_a_restore_nothing_was_sent_and_answers_of_before_say_nothing(sent):
    answer(sent, (), 0, 1)
    answer(sent, (), 1, 2)
    sent.forget(9)
    assert answer(sent, (1, 2), 0, 1, 8) == [3, 0, 1, 8]


def test_answers_that_nobody_took_are_given_up(sent):
    for number in range(1, MAX_UNDER_WAY + 1):
        assert answer(sent, (), number % 2) == [number, number % 2]
    assert answer(sent, (), 2) == [MAX_UNDER_WAY + 1, 2]
    assert len(sent._under_way) == MAX_UNDER_WAY
    assert answer(sent, (1,), 1) == [MAX_UNDER_WAY + 2, 1]


def test_shards_without_a_reader_do_not_touch_the_array(sent):
    """Its pages stay the system's zeros, so that replay for a CPU's learner takes no more."""
    sent._since.setflags(write=False)
    sent.overwritten(np.arange(6))
