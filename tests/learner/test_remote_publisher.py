"""The publisher with shards played by hand: what is announced, how often, and by which thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qfleet.common.messages import decode_snapshot
from qfleet.common.types import ParamsSnapshot
from qfleet.learner import remote_publisher
from qfleet.learner.remote_publisher import SnapshotPublisher

TIMEOUT_S = 30.0


def snapshot(version, *, target=False, n=2):
    return ParamsSnapshot(version, 10 * version, 0, target, {"w": np.zeros(n, np.float32)})


def until(condition):
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def announced(handle):
    """(version, target version) of every announcement to a shard."""
    return [call.arguments[:2] for call in handle.calls]


def confirm(handle):
    for call in handle.open("announce"):
        call.answer(None)


@pytest.fixture
def ray(hand_ray):
    return hand_ray(remote_publisher)


@pytest.fixture
def publisher(ray):
    publisher = SnapshotPublisher()
    yield publisher
    publisher.stop()


@pytest.fixture
def shards(publisher, new_handle):
    shards = [new_handle(), new_handle()]
    publisher.set_shards(shards)
    return shards


def test_every_shard_is_told_once_of_latest_and_target(publisher, shards):
    publisher.publish([snapshot(1, target=True), snapshot(2)])
    publisher.start()
    until(lambda: all(shard.calls for shard in shards))
    for shard in shards:
        confirm(shard)
    time.sleep(0.05)

    for shard in shards:
        [call] = shard.calls
        version, target_version, latest, target = call.arguments
        assert (version, target_version) == (2, 1)
        assert decode_snapshot(latest).version == 2
        assert decode_snapshot(target).version == 1


def test_target_that_is_the_latest_travels_once(publisher, shards):
    publisher.publish([snapshot(3, target=True)])
    publisher.start()
    until(lambda: shards[0].calls)

    assert shards[0].calls[0].arguments[:2] == (3, 3)
    assert shards[0].calls[0].arguments[3] is None


def test_versions_that_were_replaced_behind_a_slow_shard_are_never_announced(publisher, shards):
    slow, quick = shards
    publisher.start()
    for version in range(1, 20):
        publisher.publish([snapshot(version, target=version % 5 == 0)])
        until(lambda version=version: announced(quick)[-1:] == [(version, version // 5 * 5)])
        confirm(quick)
    assert announced(slow) == [(1, 0)]

    confirm(slow)
    until(lambda: len(slow.calls) == 2)
    assert announced(slow)[-1] == (19, 15)


def test_versions_within_a_period_are_not_announced(publisher, shards, monkeypatch):
    monkeypatch.setattr(remote_publisher, "PERIOD_S", 2 * TIMEOUT_S)
    publisher.start()
    publisher.publish([snapshot(1)])
    until(lambda: all(announced(shard) == [(1, 0)] for shard in shards))  # the first at once
    for version in range(2, 12):
        for shard in shards:
            confirm(shard)
        publisher.publish([snapshot(version)])
        time.sleep(0.005)

    assert [announced(shard) for shard in shards] == [[(1, 0)], [(1, 0)]]


def test_newest_version_is_announced_when_the_period_ends(publisher, shards, monkeypatch):
    monkeypatch.setattr(remote_publisher, "PERIOD_S", 0.1)
    publisher.set_shards(shards[:1])
    publisher.start()
    began_s = time.monotonic()
    publisher.publish([snapshot(1)])
    until(lambda: announced(shards[0]) == [(1, 0)])
    confirm(shards[0])
    publisher.publish([snapshot(2), snapshot(3)])
    until(lambda: len(shards[0].calls) == 2)

    assert announced(shards[0]) == [(1, 0), (3, 0)]
    assert time.monotonic() - began_s >= 0.1


def test_large_snapshot_is_encoded_and_put_once_by_the_publishing_thread(
    publisher, shards, ray, monkeypatch
):
    encoders, puts = [], []
    encode, put = remote_publisher.encode_snapshot, ray.put

    def noting(snapshot):
        encoders.append(threading.current_thread().name)
        return encode(snapshot)

    monkeypatch.setattr(remote_publisher, "encode_snapshot", noting)
    ray.put = lambda value: puts.append(len(value)) or put(value)
    publisher.publish([snapshot(1, target=True, n=100_000)], evaluate=True)
    publisher.start()
    until(lambda: all(shard.calls for shard in shards))

    version, payload = publisher.await_evaluation(TIMEOUT_S, 0)
    assert version == 1
    assert [shard.calls[0].arguments[2] for shard in shards] == [payload, payload]
    assert encoders == ["publisher"]
    assert len(puts) == 1
    assert puts[0] > 400_000


def test_announcement_that_was_lost_is_made_again(publisher, shards, ray):
    publisher.publish([snapshot(1)])
    publisher.start()
    until(lambda: shards[0].calls)
    shards[0].calls[0].answer(ray.lost)

    until(lambda: len(shards[0].calls) == 2)
    confirm(shards[0])
    time.sleep(0.05)
    assert announced(shards[0]) == [(1, 0), (1, 0)]


def test_announcement_without_an_answer_is_made_again(publisher, shards, ray):
    publisher.publish([snapshot(1)])
    publisher.start()
    until(lambda: shards[0].calls)

    ray.now_s += 2 * remote_publisher.SILENCE_S

    until(lambda: len(shards[0].calls) == 2)


def test_shard_that_confirms_soon_is_told_again_soon(publisher, shards, ray):
    publisher.publish([snapshot(1)])
    publisher.start()
    for version in range(2, 30):
        until(lambda: shards[0].open("announce"))
        confirm(shards[0])
        publisher.publish([snapshot(version)])
        until(lambda version=version: announced(shards[0])[-1] == (version, 0))
    calls = len(shards[0].calls)
    lost = shards[0].open("announce")
    ray.now_s += 1.2 * remote_publisher.LEAST_SILENCE_S

    until(lambda: len(shards[0].calls) > calls)
    assert not any(call.outcome for call in lost)
    assert announced(shards[0])[-1] == (29, 0)


def test_shard_that_becomes_slow_is_heard_all_the_same(publisher, shards, ray):
    """Each call that is given up makes the next one's time twice as long."""
    publisher.publish([snapshot(1)])
    publisher.start()
    until(lambda: shards[0].calls)
    confirm(shards[0])
    publisher.publish([snapshot(2)])
    for n_calls in (2, 3, 4):
        until(lambda n_calls=n_calls: len(shards[0].calls) == n_calls)
        ray.now_s += 1.01 * remote_publisher.LEAST_SILENCE_S * 2 ** (n_calls - 2)
    until(lambda: len(shards[0].calls) == 5)
    ray.now_s += 7 * remote_publisher.LEAST_SILENCE_S
    time.sleep(3 * remote_publisher.PERIOD_S)
    assert len(shards[0].calls) == 5
    shards[0].calls[4].answer(None)
    publisher.publish([snapshot(3)])
    until(lambda: len(shards[0].calls) == 6)
    assert announced(shards[0])[-1] == (3, 0)


def test_dead_shard_is_left_alone_and_its_successor_told_what_is_current(
    publisher, shards, ray, new_handle
):
    publisher.publish([snapshot(1, target=True)])
    publisher.start()
    until(lambda: shards[1].calls)
    shards[1].calls[0].answer(ray.dead)
    publisher.publish([snapshot(2)])
    confirm(shards[0])
    until(lambda: announced(shards[0])[-1] == (2, 1))
    assert announced(shards[1]) == [(1, 1)]

    successor = new_handle()
    publisher.replace_shard(1, successor)

    until(lambda: successor.calls)
    assert announced(successor) == [(2, 1)]


def test_evaluation_is_told_again_until_a_newer_version_is_asked_for(publisher):
    publisher.start()
    assert publisher.await_evaluation(0.0, 0) is None
    publisher.publish([snapshot(4)], evaluate=True)

    for _ in range(2):  # the first answer may be lost
        version, payload = publisher.await_evaluation(TIMEOUT_S, 0)
        assert (version, decode_snapshot(payload).version) == (4, 4)
    publisher.publish([snapshot(5)])  # not to be evaluated
    assert publisher.await_evaluation(0.0, 4) is None


def test_evaluation_that_falls_due_with_the_end_is_not_lost(publisher):
    publisher.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(publisher.await_evaluation, 10 * TIMEOUT_S, 4)
        publisher.close()
        assert waiting.result(TIMEOUT_S) is None

    publisher.publish([snapshot(5)], evaluate=True)
    publisher.stop()

    assert publisher.await_evaluation(0.0, 4)[0] == 5


def test_offer_without_the_thread_is_what_was_published(publisher):
    assert tuple(publisher.offer()) == (0, 0, None, None)
    publisher.publish([snapshot(1, target=True), snapshot(2, target=True), snapshot(3)])

    offer = publisher.offer()

    assert (offer.version, offer.target_version) == (3, 2)
    assert [decode_snapshot(p).version for p in (offer.latest, offer.target)] == [3, 2]
    assert publisher.offer().latest is offer.latest


def test_error_of_the_publishing_thread_ends_the_training(publisher, shards, ray, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ray.put = lambda value: (_ for _ in ()).throw(MemoryError("the store is full"))
    publisher.publish([snapshot(1, n=100_000)])
    publisher.start()
    until(lambda: publisher._error is not None)

    with pytest.raises(MemoryError, match="the store is full"):
        publisher.publish([snapshot(2)])
