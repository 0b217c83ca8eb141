"""The broadcaster with Ray's two questions answered by hand."""

import numpy as np
import pytest

from qfleet.common.types import ParamsSnapshot
from qfleet.learner import remote_broadcast
from qfleet.learner.remote_broadcast import MAX_UNACKNOWLEDGED_SNAPSHOTS, SnapshotBroadcaster


class ByHand:
    """`ray.wait` and `ray.get` over references that a test marks as answered."""

    def __init__(self) -> None:
        self.answered: set[tuple[int, int]] = set()
        self.questions = 0

    def wait(self, refs, num_returns, timeout):
        self.questions += 1
        ready = [ref for ref in refs if ref in self.answered][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, refs, timeout):
        return [(slot, version, version % 2 == 0) for slot, version in refs]


class Actor:
    """Counts what it was sent; the reference is (slot, number)."""

    def __init__(self, slot: int) -> None:
        self.slot, self.sent = slot, 0
        self.set_params = self

    def remote(self, payload):
        self.sent += 1
        return self.slot, self.sent


def snapshot(version: int, *, is_target_sync: bool = False) -> ParamsSnapshot:
    return ParamsSnapshot(version, 0, 0, is_target_sync, {"w": np.zeros(2, np.float32)})


@pytest.fixture
def by_hand(monkeypatch) -> ByHand:
    ray = ByHand()
    monkeypatch.setattr(remote_broadcast, "ray", ray)
    return ray


def test_send_asks_for_acknowledgements_only_where_one_decides(by_hand):
    broadcaster, actors = SnapshotBroadcaster(), {0: Actor(0), 1: Actor(1)}
    broadcaster.set_actors(actors)

    for version in range(1, MAX_UNACKNOWLEDGED_SNAPSHOTS + 1):
        broadcaster.send(snapshot(version))
    assert by_hand.questions == 0

    by_hand.answered |= {(0, 1), (0, 2), (1, 1)}
    broadcaster.send(snapshot(MAX_UNACKNOWLEDGED_SNAPSHOTS + 1))
    assert by_hand.questions == 1
    sent = MAX_UNACKNOWLEDGED_SNAPSHOTS + 1
    assert [actor.sent for actor in actors.values()] == [sent, sent]
    assert broadcaster.skipped == 0
    assert broadcaster.silent_slots == [0, 1]


def test_send_skips_an_actor_that_is_far_behind_but_never_a_target_sync(by_hand):
    broadcaster, slow, quick = SnapshotBroadcaster(), Actor(0), Actor(1)
    broadcaster.set_actors({0: slow, 1: quick})
    most = MAX_UNACKNOWLEDGED_SNAPSHOTS
    for version in range(most):
        broadcaster.send(snapshot(version))
    by_hand.answered |= {(1, number) for number in range(most + 2)}

    broadcaster.send(snapshot(most))
    assert (slow.sent, quick.sent, broadcaster.skipped) == (most, most + 1, 1)

    broadcaster.send(snapshot(most + 1, is_target_sync=True))
    assert (slow.sent, quick.sent, broadcaster.skipped) == (most + 1, most + 2, 1)


def test_collect_logs_every_target_sync_that_was_acknowledged(by_hand):
    broadcaster = SnapshotBroadcaster()
    broadcaster.set_actors({0: Actor(0)})
    for version in (1, 2, 3, 4):
        broadcaster.send(snapshot(version, is_target_sync=True))
    by_hand.answered |= {(0, 1), (0, 2), (0, 3), (0, 4)}

    broadcaster.collect()

    assert broadcaster.acknowledged_target_syncs == {0: [2, 4]}
    assert broadcaster.silent_slots == []


@pytest.mark.parametrize("timeout_s", [0.0, 1.0])
def test_collect_keeps_the_order_of_sending_when_ray_tells_of_a_later_one_first(by_hand, timeout_s):
    broadcaster = SnapshotBroadcaster()
    broadcaster.set_actors({0: Actor(0)})
    for version in (1, 2, 3, 4):
        broadcaster.send(snapshot(version, is_target_sync=True))

    by_hand.answered |= {(0, 1), (0, 3), (0, 4)}
    broadcaster.collect(timeout_s)
    assert broadcaster.acknowledged_target_syncs == {}
    assert broadcaster.silent_slots == [0]

    by_hand.answered |= {(0, 2)}
    broadcaster.collect(timeout_s)
    assert broadcaster.acknowledged_target_syncs == {0: [2, 4]}
    assert broadcaster.silent_slots == []
