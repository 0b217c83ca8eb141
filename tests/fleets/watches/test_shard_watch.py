"""One of several shards that dies, by hand: who is told what, and in which order it comes back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.common.errors import RoleLostError
from qfleet.fleets.watches import shard_watch
from qfleet.fleets.watches.shard_watch import ShardWatch

MIN_SIZE = 50


def report(shard, size, slots=()):
    stats = [size, size, 0, 0, float(size), 0, 0, 0, 0, 0, 0]
    return {"shard": shard, "stats": stats, "slots": [list(slot) for slot in slots]}


class Rehearsal:
    """Two shards, whose calls are answered by hand, and everything the watch asks for."""

    def __init__(self, ray, new_handle, cut):
        self.ray, self.new_handle, self.cut = ray, new_handle, cut
        self.killed = ray.killed
        self.said, self.rolled_back, self.restored = [], [], []
        self.reports, self.now_s, self.differing = {}, 0.0, ""
        plans = SimpleNamespace(
            replay=SimpleNamespace(min_size_to_sample=MIN_SIZE),
            fleet=SimpleNamespace(max_role_restarts=2),
        )
        self.shards = [new_handle(), new_handle()]
        self.learner = new_handle()
        roles = SimpleNamespace(
            plans=plans,
            shards=self.shards,
            shard_names=["replay-0", "replay-1"],
            learner=self.learner,
            create_shard=self.create,
            tells_place=lambda *told: None,
            places=SimpleNamespace(differing=lambda role: self.differing),
        )
        actors = SimpleNamespace(turn_to=lambda shard: {1: 7, 3: 8})
        self.watch = ShardWatch(roles, actors, self)

    def create(self, index):
        self.shards[index] = self.new_handle()
        return self.shards[index]

    def ask_report(self, index):
        return self.shards[index].report.remote()

    def began_anew(self, index):
        self.reports[index]["began_anew"] = True

    def newest_cut(self):
        return self.cut

    def shard_rolled_back(self, slots):
        self.rolled_back.append(slots)

    def incident(self, text, whole_text=""):
        self.said.append(text)

    def tick(self, sizes):
        """One tick; shards with a size answer it, those with None are dead."""
        self.now_s += 0.3
        for _ in range(2):
            for index, size in sizes.items():
                for call in self.shards[index].open("report"):
                    call.answer(self.ray.dead if size is None else report(index, size))
            for told in self.watch.poll(self, self.now_s):
                self.reports[told["shard"]] = told
        for handle in (*self.shards, self.learner):
            for method in ("take_over", "replace_shard"):
                for call in handle.open(method):
                    call.answer(None)
        self.watch.go_on(self, self.reports, self.now_s)

    @property
    def told_learner(self):
        calls = self.learner.calls
        return [c.arguments for c in calls if c.method == "replace_shard"]


@pytest.fixture
def rehearse(ray, new_handle, monkeypatch):
    # Control calls are answered at once: what they carry is looked at, not how they are waited for.
    monkeypatch.setattr(shard_watch, "ask", lambda call, *_: call())

    def make(cut):
        rehearsal = Rehearsal(ray, new_handle, cut)
        monkeypatch.setattr(
            shard_watch, "restore_shard", lambda roles, *args: rehearsal.restored.append(args)
        )
        rehearsal.reports = {0: report(0, 90), 1: report(1, 80, [(1, 7, 400, 80, 0, 0)])}
        return rehearsal

    return make


def test_lost_shard_is_made_anew_restored_and_handed_over(rehearse):
    subject = rehearse(cut={"replay-1.qflt": b"rows"})
    subject.tick({0: 90, 1: 80})
    dead = subject.shards[1]
    subject.reports[1]["slots"] = [[1, 7, 400, 80, 0, 0]]

    subject.tick({0: 90, 1: None})
    assert subject.killed == [dead]
    assert subject.shards[1] is not dead
    assert [subject.watch.is_there(slot) for slot in (0, 1, 2, 3)] == [True, False, True, False]
    assert not subject.watch.are_all_there
    subject.tick({0: 90})  # it is starting: nothing is asked of it, and nobody waits
    assert subject.told_learner == []

    subject.shards[1].open("ready")[0].answer(4711)
    subject.tick({0: 90})
    assert subject.restored == [(1, subject.cut)]
    [taken_over] = [c.arguments for c in subject.shards[1].calls if c.method == "take_over"]
    assert taken_over == ({1: 400}, {1: 7, 3: 8})
    assert subject.told_learner == [(1, subject.shards[1], False)]
    assert (subject.rolled_back, subject.watch.are_all_there) == ([[1, 3]], True)

    # It fills: until then the learner draws from the other one alone.
    subject.tick({0: 90, 1: MIN_SIZE - 1})
    subject.tick({0: 90, 1: MIN_SIZE - 1})
    assert len(subject.told_learner) == 1
    subject.tick({0: 90, 1: MIN_SIZE})
    assert subject.told_learner[1:] == [(1, subject.shards[1], True)]
    assert "the others go on while replay shard 1 is restored" in subject.said[0]
    assert subject.said[1:] == ["replay shard 1 is there again, as of the last checkpoint"]


def test_shard_without_a_checkpoint_begins_empty(rehearse):
    subject = rehearse(cut=None)
    subject.tick({0: 90, 1: None})
    subject.shards[1].open("ready")[0].answer(4711)
    subject.tick({0: 90})

    assert subject.restored == []
    assert subject.said[-1] == "replay shard 1 is there again, empty: there is no checkpoint yet"


def test_shard_on_a_host_with_other_versions_is_tried_elsewhere(rehearse):
    subject = rehearse(cut=None)
    subject.tick({0: 90, 1: None})
    subject.differing = "host h2 has torch 2.10.0 (here 2.13.0)"
    subject.shards[1].open("ready")[0].answer(4711)
    subject.tick({0: 90})
    assert subject.said[-1].startswith("replay shard 1: host h2 has torch 2.10.0 (here 2.13.0)")
    assert len(subject.killed) == 2


def test_shard_that_dies_again_before_it_served_is_tried_so_often(rehearse):
    subject = rehearse(cut=None)
    subject.tick({0: 90, 1: None})
    subject.shards[1].open("ready")[0].answer(subject.ray.dead)
    subject.tick({0: 90})
    subject.now_s += 2.0
    subject.tick({0: 90})
    subject.shards[1].open("ready")[0].answer(subject.ray.dead)
    with pytest.raises(RoleLostError, match="max_role_restarts = 2"):
        subject.tick({0: 90})


def test_only_shard_ends_the_attempt_as_before(rehearse):
    subject = rehearse(cut=None)
    del subject.shards[1], subject.watch.polls[1]
    with pytest.raises(RoleLostError, match="replay shard 0 died"):
        subject.tick({0: None})
    assert (subject.killed, subject.said) == ([], [])
