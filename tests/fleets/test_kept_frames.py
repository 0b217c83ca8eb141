"""A learner that keeps the shards' frames learns the same bits as one that is given whole stacks.

What a GPU does, on a CPU: `BatchStager` unfolds the stacks with the same calls there.
"""

from __future__ import annotations

import pytest

from qfleet.fleets.local_fleet import LocalFleet
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
def make_fleet(monkeypatch):
    fleets = []

    def make(keeps, **changes):
        monkeypatch.setattr(LocalFleet, "_keeps_frames_on", lambda self, device: keeps)
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        spec, config = check_and_resolve(load_config("cartpole-pixels", [], {**SMALL, **overrides}))
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


def test_frames_are_sent_once(make_fleet, monkeypatch):
    from qfleet.learner.device_frames import DeviceFrames

    sent, take = [], DeviceFrames._take

    def counted(self, shard, news):
        sent.extend(news.places.tolist())
        take(self, shard, news)

    monkeypatch.setattr(DeviceFrames, "_take", counted)
    fleet = make_fleet(True)
    play(fleet)
    played = sum(actor.env_steps for actor in fleet.report().actors)
    # One frame a step, and some that an episode begins with; each update names 8 * 2 * 3.
    assert 100 < len(sent) <= 2 * played
    assert fleet.report().learner.learner_steps * 48 > 10 * len(sent)
