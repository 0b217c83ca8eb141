"""A learner that keeps the shards' frames learns the same bits as one that is given whole stacks.

What a GPU does, on a CPU: `BatchStager` unfolds the stacks with the same calls there.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from qfleet.actors.build import build_actor
from qfleet.common.messages import encode_chunk
from qfleet.common.plan_json import plan_to_json
from qfleet.fleets import local_fleet
from qfleet.fleets.local_fleet import LocalFleet
from qfleet.learner import device_frames, frames_choice, remote_replay
from qfleet.learner import remote as learner_remote
from qfleet.learner.remote import LearnerShell
from qfleet.replay_server.remote import ReplayServerShell
from qfleet.run.resolution import check_and_resolve
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

SMALL = {
    "runtime": "local",
    "actors.count": 2,
    "actors.envs_per_actor": 2,
    "actors.n_step": 2,
    "env.frame_stack": 3,
    "actors.max_chunk_transitions": 40,
    "replay.capacity": 120,
    "replay.min_size_to_sample": 20,
    "network.hidden_sizes": [8],
    "learner.device": "cpu",
    "learner.batch_size": 8,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 100,
}


@pytest.fixture
def resolved():
    def resolve(**changes):
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        return check_and_resolve(load_config("cartpole-pixels", [], {**SMALL, **overrides}))

    return resolve


@pytest.fixture
def make_fleet(monkeypatch, resolved):
    fleets = []

    def make(keeps, **changes):
        monkeypatch.setattr(local_fleet, "keeps_frames", lambda device, n_bytes: keeps)
        spec, config = resolved(**changes)
        fleet = LocalFleet(run_plans(config), spec, run_id="r1", incarnation=0, device="cpu")
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        fleet.close()


def play(fleet, rounds=12):
    for _ in range(rounds):
        fleet.act(10)
        fleet.learn(2)
        fleet.publish()
    return fleet.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replay__shards": 2, "replay__sampling": "prioritized"},
        {"replay__compression": "zlib", "env__frame_rows": None, "env__frame_size": 13},
    ],
)
def test_parameters_are_the_same_bits(make_fleet, changes):
    """Over a ring that overwrites itself several times."""
    kept, whole = make_fleet(True, **changes), make_fleet(False, **changes)
    assert play(kept) == play(whole)
    assert sum(stats.evicted for stats in kept.shard_stats()) > 80


def test_parameters_are_the_same_bits_after_a_restore(make_fleet):
    """Also where the learner had kept frames of what the shard held before."""
    begun, whole = make_fleet(False), make_fleet(False)
    play(begun)
    files = {name: memoryview(b"".join(stream)) for name, stream in begun.capture(True).items()}
    kept = make_fleet(True)
    play(kept, 5)
    kept.restore(files)
    whole.restore(files)
    assert play(kept) == play(whole)


def count_sent(monkeypatch):
    """A list of the places of all frames that learners take from now on."""
    sent, take = [], device_frames.DeviceFrames._take

    def counted(self, shard, news):
        sent.extend(news.places.tolist())
        take(self, shard, news)

    monkeypatch.setattr(device_frames.DeviceFrames, "_take", counted)
    return sent


def test_frames_are_sent_once(make_fleet, monkeypatch):
    sent = count_sent(monkeypatch)
    fleet = make_fleet(True)
    play(fleet)
    played = sum(actor.env_steps for actor in fleet.report().actors)
    # One frame a step, and some that an episode begins with; each update names 8 * 2 * 3.
    assert 100 < len(sent) <= 2 * played
    assert fleet.report().learner.learner_steps * 48 > 10 * len(sent)


class Served:
    """A shard's shell in this process, called as Ray calls it."""

    def __init__(self, shell):
        self.shell = shell

    def __getattr__(self, method):
        return SimpleNamespace(remote=getattr(self.shell, method))


@pytest.mark.parametrize("shards", [1, 2])
def test_learner_over_ray_learns_the_same_bits_in_lockstep(resolved, monkeypatch, shards):
    fake_ray = SimpleNamespace(get=lambda refs, timeout: refs, exceptions=ray.exceptions)
    monkeypatch.setattr(remote_replay, "ray", fake_ray)
    spec, config = resolved(replay__shards=shards)
    plans = run_plans(config)
    plan_json, spec_json = plan_to_json(plans.replay), spec.to_json()
    sent = count_sent(monkeypatch)

    def learned(by_place):
        monkeypatch.setattr(learner_remote, "keeps_frames", lambda device, n_bytes: by_place)
        learner = LearnerShell(plan_to_json(plans.learner), spec_json, [], "cpu")
        shells = [ReplayServerShell(plan_json, spec_json, "r", i) for i in range(shards)]
        learner.set_shards([Served(shell) for shell in shells])
        actors = [build_actor(plans.actor, spec, run_id="r", slot=i, incarnation=0) for i in (0, 1)]
        for snapshot in learner._core.take_snapshots():
            for actor in actors:
                actor.set_params(snapshot)
        for _ in range(12):
            for slot, actor in enumerate(actors):
                actor.act_steps(10)
                if (chunk := actor.take_chunk()) is not None:
                    shells[slot % shards].insert(encode_chunk(chunk), wait=False)
            learner.learn(2)
        for actor in actors:
            actor.close()
        return learner._core.params_sha256(), len(sent)

    (whole, none_sent), (kept, n_sent) = learned(by_place=False), learned(by_place=True)
    assert kept == whole
    assert none_sent == 0
    assert n_sent > 100


def test_plan_tells_what_the_shards_frames_take(make_fleet):
    fleet = make_fleet(False, replay__shards=2)
    pools = [shard._framed.pool for shard in fleet._shards]
    taken = sum(len(pool._frames) * pool.frame_bytes for pool in pools)
    assert fleet._learner._plan.frame_bytes == taken > 0


def test_keeps_frames_where_there_is_room_and_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(device_frames, "has_room", lambda device, n_bytes: n_bytes <= 2**20)
    assert [frames_choice.keeps_frames("cuda:0", n) for n in (2**20, 2**20, 2**21)] == [
        True,
        True,
        False,
    ]
    assert not frames_choice.keeps_frames("cpu", 1)
    assert not frames_choice.keeps_frames("cuda:0", 0)
    err = capsys.readouterr().err
    assert err == "qfleet: frames are kept on cuda:0 (0.00 GiB), not sent with every draw\n"
