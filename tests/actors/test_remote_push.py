"""Chunks to a shard played by hand: what is lost, held back, overtaken and answered late."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.actors import remote_push
from qfleet.actors.remote_push import ChunkSender
from qfleet.common.errors import WaitTimeoutError
from qfleet.common.messages import decode_chunk
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk

SPEC = EnvironmentSpec("CartPole-v1", (2,), "<f4", 2, 475.0, 500)
NOTHING_NEW = [5, 5, None, None]


@pytest.fixture
def ray(hand_ray):
    return hand_ray(remote_push)


@pytest.fixture
def shard(new_handle):
    return new_handle()


@pytest.fixture
def offers():
    return []


@pytest.fixture
def sender(ray, shard, offers):
    return ChunkSender(
        shard, 3, credits=100, held_versions=lambda: (4, 2), take_offer=offers.append
    )


def chunk(seq, rows=4):
    numbers = np.arange(rows)
    observation = np.stack([numbers, numbers], axis=1).astype("<f4")
    columns = {
        "observation": observation,
        "action": (numbers % 2).astype("<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.full(rows, 0.99, "<f4"),
        "next_observation": observation + 1,
    }
    return TransitionChunk(ChunkId("run", 3, 0, seq), columns, None, 0, rows)


def ack(status="accepted", credits=100, offer=NOTHING_NEW):
    return [[status, 0, credits], offer]


def seqs(calls):
    """Numbers of the chunks that those calls of `insert` carry."""
    return [decode_chunk(call.arguments[0], SPEC).chunk_id.seq for call in calls]


def test_acknowledged_chunk_is_gone_and_its_offer_taken(sender, shard, offers):
    sender.send(chunk(0))
    assert (sender.rows, sender.has_room(4)) == (4, True)
    sender.send(chunk(1))
    assert (sender.rows, sender.has_room(4)) == (8, False)
    assert shard.calls[0].arguments[1] == (4, 2)  # what the actor holds

    shard.calls[0].answer(ack(offer=[7, 6, b"latest", b"target"]))
    sender.wait(0.1)

    assert (sender.rows, sender.has_room(4)) == (4, True)
    assert [tuple(offer) for offer in offers] == [(7, 6, b"latest", b"target")]


def test_one_chunk_at_a_time_where_the_next_would_be_held_back(sender, shard):
    sender.send(chunk(0))
    shard.calls[0].answer(ack(credits=3))
    sender.wait(0.1)

    sender.send(chunk(1))

    assert not sender.has_room(4)
    assert sender.has_room(3)


def test_chunk_held_back_is_never_sent_again(ray, sender, shard):
    """An hour; the shard says every time it is asked that it has it."""
    sender.send(chunk(0))
    ray.on_idle = lambda: [call.answer(True) for call in shard.open("holds")]

    while ray.now_s < 1000.0 + 3600.0:
        sender.wait(0.1)

    assert seqs(shard.open("insert")) == [0]
    asked = [call for call in shard.calls if call.method == "holds"]
    assert all(call.arguments == ("run", 3, 0, 0) for call in asked)
    assert len(asked) > 3600 / remote_push.LONGEST_QUESTION_S - 1
    assert len(asked) <= 3600 / remote_push.LONGEST_QUESTION_S + 10


def test_chunk_that_ray_lost_is_sent_again_under_the_same_name(ray, sender, shard):
    sender.send(chunk(0))
    shard.calls[0].answer(ray.lost)

    sender.wait(0.1)

    assert seqs(shard.calls) == [0, 0]
    shard.calls[1].answer(ack("duplicate"))  # only the answer had been lost
    sender.wait(0.1)
    assert sender.rows == 0
    assert not sender.refused


def test_chunk_that_the_shard_does_not_have_is_sent_again_after_a_silence(ray, sender, shard):
    sender.send(chunk(0))
    while not shard.open("holds"):
        sender.wait(0.1)
    assert ray.now_s - 1000.0 <= 2 * remote_push.FIRST_QUESTION_S

    shard.open("holds")[0].answer(False)
    sender.wait(0.1)

    assert seqs(shard.open("insert")) == [0, 0]


def questions(shard):
    """Numbers of the chunks that were asked after, in order."""
    return [call.arguments[3] for call in shard.calls if call.method == "holds"]


def test_shard_that_answers_soon_is_asked_soon_after_a_chunk_that_it_does_not_have(
    ray, sender, shard
):
    for seq in range(20):
        sender.send(chunk(seq))
        ray.now_s += 0.003
        shard.open("insert")[0].answer(ack())
        sender.wait(0.1)
    sender.send(chunk(20))
    sent_s = ray.now_s

    while not shard.open("holds"):
        sender.wait(0.1)

    waited_s, least_s = ray.now_s - sent_s, remote_push.LEAST_QUESTION_S
    assert least_s < waited_s < 1.5 * least_s < remote_push.FIRST_QUESTION_S


def test_chunk_that_is_held_back_for_a_while_is_asked_after_once(ray, sender, shard):
    for seq in range(20):
        sender.send(chunk(seq))
        for _ in range(15):
            sender.wait(0.01)
            for call in shard.open("holds"):
                call.answer(True)
        shard.open("insert")[0].answer(ack())
        sender.wait(0.1)

    assert questions(shard) == list(range(20))


def test_chunk_that_is_long_on_its_way_is_sent_ever_more_seldom(ray, sender, shard):
    """A slow network: the shard has not got it yet whenever it is asked."""
    sender.send(chunk(0))
    moments, n_sent = [], 1
    while len(moments) < 6:
        for call in shard.open("holds"):
            call.answer(False)
        sender.wait(0.001)
        if len(shard.open("insert")) > n_sent:
            n_sent += 1
            moments.append(ray.now_s - 1000.0)
    gaps = np.diff(moments)
    first_s = remote_push.FIRST_QUESTION_S
    np.testing.assert_allclose(gaps, [first_s * 2**n for n in range(1, 6)], atol=0.01)


def test_question_that_is_not_answered_is_asked_again_soon_and_then_ever_later(ray, sender, shard):
    """It is never held back: silence means that it is lost, or that the shard has stopped."""
    sender.send(chunk(0))
    moments = []
    while len(moments) < 9:
        asked = len(questions(shard))
        sender.wait(0.01)
        if len(questions(shard)) > asked:
            moments.append(ray.now_s - 1000.0)

    gaps = np.diff(moments)
    first_s = remote_push.FIRST_QUESTION_S
    assert moments[0] == pytest.approx(first_s, abs=0.011)
    wanted = [min(remote_push.LONGEST_QUESTION_S, first_s * 2**n) for n in range(8)]
    np.testing.assert_allclose(gaps, wanted, atol=0.011)
    assert len(shard.open("insert")) == 1


def test_chunk_that_was_sent_twice_and_answered_twice_at_once_counts_once(ray, sender, shard):
    sender.send(chunk(0))
    while not shard.open("holds"):
        sender.wait(0.1)
    shard.open("holds")[0].answer(False)
    sender.wait(0.1)
    sender.send(chunk(1))

    for call, status in zip(shard.open("insert")[:2], ("accepted", "duplicate"), strict=True):
        call.answer(ack(status))
    sender.wait(0.1)

    assert (sender.rows, sender.refused) == (4, "")
    assert seqs(shard.open("insert")) == [1]


def test_question_that_is_lost_is_asked_again(ray, sender, shard):
    sender.send(chunk(0))
    while not shard.open("holds"):
        sender.wait(0.1)
    shard.open("holds")[0].answer(ray.lost)

    while not shard.open("holds"):
        sender.wait(0.1)

    assert seqs(shard.open("insert")) == [0]


def test_overtaken_chunk_is_asked_after_soon_and_sent_again_where_it_is_lost(ray, sender, shard):
    sender.send(chunk(0))
    sender.send(chunk(1))
    shard.open("insert")[1].answer(ack())
    while not shard.open("holds"):
        sender.wait(0.1)
    assert ray.now_s - 1000.0 <= 2 * remote_push.OVERTAKEN_S

    shard.open("holds")[0].answer(False)
    sender.wait(0.1)

    assert seqs(shard.open("insert")) == [0, 0]


def test_answers_that_change_places_send_nothing_again(ray, sender, shard):
    sender.send(chunk(0))
    sender.send(chunk(1))
    first, second = shard.open("insert")
    second.answer(ack())
    sender.wait(0.0)
    first.answer(ack())
    sender.wait(0.0)

    assert sender.rows == 0
    assert len(shard.calls) == 2


@pytest.mark.parametrize("status", ["stale_incarnation", "foreign_run"])
def test_chunk_that_is_not_wanted_ends_the_actor(sender, shard, status):
    sender.send(chunk(0))
    shard.calls[0].answer(ack(status))
    sender.wait(0.1)

    assert sender.refused == status


def test_shard_of_which_nothing_is_heard_is_given_up(ray, sender, shard):
    sender.send(chunk(0))

    def keep_waiting():
        while True:
            sender.wait(0.1)

    with pytest.raises(WaitTimeoutError, match="actor 3 waited 60 s for the replay server to"):
        keep_waiting()
    assert ray.now_s - 1000.0 == pytest.approx(60.0, abs=1.0)


def test_chunks_of_a_shard_that_died_wait_for_the_one_in_its_place(ray, sender, shard, new_handle):
    """Nothing is sent to the dead one, and what it had taken is not awaited of its successor."""
    for seq in range(3):
        sender.send(chunk(seq))
    shard.open("insert")[0].answer(ack())
    sender.wait(0.0)
    for call in shard.open("insert"):
        call.answer(ray.dead)
    for _ in range(3):
        sender.wait(0.001)
    n_calls = len(shard.calls)
    sender.send(chunk(3))
    sender.wait(0.001)
    assert (len(shard.calls), sender.rows, sender.has_room(4)) == (n_calls, 12, False)

    successor = new_handle()
    sender.replace_shard(successor)
    sender.wait(0.001)

    begin, *inserts = successor.calls
    assert (begin.method, begin.arguments) == ("begin_at", (3, 0, 1))
    assert seqs(inserts) == [1, 2, 3]
    for call in inserts:
        call.answer(ack())
    sender.wait(0.0)
    assert (sender.rows, sender.refused) == (0, "")


def test_actor_that_had_nothing_on_its_way_begins_with_its_next_chunk(
    ray, sender, shard, new_handle
):
    sender.send(chunk(0))
    shard.calls[0].answer(ack())
    sender.wait(0.0)
    successor = new_handle()
    sender.replace_shard(successor)

    sender.wait(0.0)

    assert [(c.method, c.arguments) for c in successor.calls] == [("begin_at", (3, 0, 1))]


def test_chunk_that_the_old_shard_held_back_is_asked_after_as_soon_as_any_at_the_new_one(
    ray, sender, shard, new_handle
):
    """What is held back is asked after ever more seldom; the new one holds nothing back yet."""
    sender.send(chunk(0))
    while not any(sent.patience_s > 1.0 for sent in sender._sent):
        sender.wait(0.1)
        for call in shard.open("holds"):
            call.answer(True)
    shard.open("insert")[0].answer(ray.dead)
    sender.wait(0.001)
    ray.now_s += 30.0
    successor = new_handle()
    sender.replace_shard(successor)
    sender.wait(0.0)
    turned_s = ray.now_s

    while not successor.open("holds"):
        sender.wait(0.1)

    assert ray.now_s - turned_s <= remote_push.MOST_QUESTION_S


def test_shard_that_does_not_come_back_is_given_up(ray, sender, shard, monkeypatch):
    monkeypatch.setattr(remote_push, "SHARD_RETURN_TIMEOUT_S", 5.0)
    sender.send(chunk(0))
    shard.calls[0].answer(ray.dead)
    sender.wait(0.001)
    ray.now_s += 5.1

    with pytest.raises(WaitTimeoutError, match="actor 3 waited 5 s for a replay shard in place"):
        sender.wait(0.001)


def test_drain_takes_what_comes_soon_and_keeps_the_rest(ray, sender, shard):
    sender.send(chunk(0))
    sender.send(chunk(1))
    ray.on_idle = lambda: shard.calls[0].answer(ack())

    sender.drain(1.0)

    assert sender.rows == 4
    assert ray.now_s - 1000.0 <= 1.2
