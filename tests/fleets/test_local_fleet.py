"""All roles in one process: rounds, delivery of parameters, and an exact capture."""

from __future__ import annotations

import pytest

from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.errors import CheckpointError
from qfleet.common.params import decode_safetensors, params_sha256
from qfleet.common.reports import EvaluationRequest
from qfleet.common.types import Capture, EnvironmentSpec
from qfleet.fleets.local_fleet import LocalFleet
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
SMALL = {
    "runtime": "local",
    "actors.count": 3,
    "actors.envs_per_actor": 2,
    "replay.capacity": 600,
    "replay.shards": 2,
    "replay.min_size_to_sample": 40,
    "network.hidden_sizes": [16],
    "learner.batch_size": 8,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 100,
}


@pytest.fixture
def make_fleet():
    fleets = []

    def make(**changes):
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config("cartpole", [], {**SMALL, **overrides})
        config = resolve_config(config, None, cpus=2, gpus=0)
        fleet = LocalFleet(run_plans(config), SPEC, run_id="r1", incarnation=0, device="cpu")
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        fleet.close()


def rounds(fleet, n):
    for _ in range(n):
        fleet.act(20)
        fleet.learn(2)
        fleet.publish()


def test_act_sends_each_slot_to_its_shard(make_fleet):
    fleet = make_fleet()
    fleet.act(20)
    even, odd = fleet.shard_stats()
    report = fleet.report()
    produced = {actor.slot: actor.produced for actor in report.actors}
    assert even.inserted == produced[0] + produced[2]
    assert odd.inserted == produced[1]
    # Vector steps end at the first multiple at or above 20; reset steps do not count.
    assert all(20 <= actor.env_steps <= 21 for actor in report.actors)
    assert report.env_steps == sum(actor.env_steps for actor in report.actors)


def test_act_of_an_episode_ends_one_episode_per_slot(make_fleet):
    fleet = make_fleet(actors__envs_per_actor=1)
    fleet.act(None)
    episodes = fleet.report().episodes
    assert [episode.actor_slot for episode in episodes] == [0, 1, 2]
    assert all(episode.terminated for episode in episodes)
    assert fleet.report().episodes == []


def test_learn_counts_updates_and_draws(make_fleet):
    fleet = make_fleet()
    fleet.act(30)
    assert fleet.learn(3) == 30
    assert sum(stats.sampled for stats in fleet.shard_stats()) == 3 * 10 * 8


def test_publish_delivers_one_version_to_every_actor_and_none_twice(make_fleet):
    fleet = make_fleet()
    fleet.act(30)
    before = fleet.report().learner.params_version
    fleet.learn(1)
    fleet.publish()
    fleet.publish()
    report = fleet.report()
    assert report.learner.params_version == before + 1
    assert [actor.params_learner_step for actor in report.actors] == [10, 10, 10]


def test_target_sync_log_holds_the_targets_that_every_actor_acted_with(make_fleet):
    fleet = make_fleet()
    rounds(fleet, 5)
    log = fleet.target_sync_log()
    assert [step for step, _ in log["syncs"]] == [0, 20, 40, 60, 80, 100]
    versions = [version for _, version in log["syncs"]]
    assert versions == sorted(set(versions))
    # A round of two blocks ends on a sync: all of them acted, but for the one after the last round.
    acted = versions[:-1]
    assert log["acknowledged"] == {0: acted, 1: acted, 2: acted}
    fleet.act(1)
    assert fleet.target_sync_log()["acknowledged"] == {0: versions, 1: versions, 2: versions}


def test_evaluate_is_of_the_current_parameters(make_fleet):
    fleet = make_fleet()
    rounds(fleet, 2)
    request = EvaluationRequest(4, 5, 1.0, 6, 7)
    first, again = fleet.evaluate(request), fleet.evaluate(request)
    assert first == again
    assert (first.learner_step, first.episodes, first.confirm_episodes) == (40, 4, 6)
    assert first.env_steps > 0


def test_params_bytes_are_the_fingerprinted_parameters(make_fleet):
    fleet = make_fleet()
    rounds(fleet, 1)
    arrays, network, spec = decode_safetensors(fleet.params_bytes())
    assert params_sha256(arrays) == fleet.fingerprint()
    assert (network.hidden_sizes, spec) == ((16,), SPEC)


def cut(fleet, replay_contents=True):
    """A cut as a checkpoint's files are read back."""
    files = fleet.capture(replay_contents)
    return {name: memoryview(b"".join(stream)) for name, stream in files.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replay__sampling": "prioritized"},
        {"network__normalization": "batch"},
        {"learner__target_tau": 0.01, "learner__optimizer": "adam"},
        {"network__dueling": True, "replay__sampling": "rank"},
        {
            "network__distribution": "c51",
            "network__value_min": 0,
            "network__value_max": 100,
            "replay__sampling": "prioritized",
        },
        {"network__distribution": "qr", "network__noisy": True, "replay__sampling": "prioritized"},
        {
            "network__distribution": "iqn",
            "network__hidden_sizes": [8, 8],
            "network__noisy": True,
            "network__dueling": True,
            "replay__sampling": "rank",
        },
        {
            "learner__munchausen": True,
            "learner__double_q": False,
            "actors__n_step": 1,
            "replay__sampling": "prioritized",
        },
        {
            "network__normalization": "layer",
            "learner__target_network": False,
            "learner__double_q": False,
            "learner__loss": "mse",
            "learner__optimizer": "radam",
            "learner__learning_rate_schedule": "cosine",
            "learner__learning_rate_end_learner_steps": 100,
            "actors__max_abs_reward": 0.5,
        },
    ],
    ids=[
        "uniform",
        "prioritized",
        "batch-norm",
        "polyak-adam",
        "dueling-rank",
        "c51-prioritized",
        "qr-noisy-prioritized",
        "iqn-noisy-dueling-rank",
        "munchausen-prioritized",
        "no-target-mse-layer-radam-cosine-clipped",
    ],
)
def test_restore_goes_on_bit_for_bit(make_fleet, changes):
    straight, first, second = (make_fleet(**changes) for _ in range(3))
    rounds(straight, 6)
    rounds(first, 3)
    assert second.restore(cut(first)) == 0
    assert second.fingerprint() == first.fingerprint()
    rounds(second, 3)
    assert second.fingerprint() == straight.fingerprint()
    assert second.shard_stats() == straight.shard_stats()
    straight_report, second_report = straight.report(), second.report()
    assert second_report.learner == straight_report.learner
    counters = ("slot", "env_steps", "produced", "unsent", "params_learner_step")
    for ours, theirs in zip(second_report.actors, straight_report.actors, strict=True):
        assert [getattr(ours, c) for c in counters] == [getattr(theirs, c) for c in counters]
    again = cut(second)
    for name, data in cut(straight).items():
        if not name.startswith("replay"):  # ages of items are wall time
            assert again[name] == data, name


def test_restore_without_contents_keeps_counters_and_refills(make_fleet):
    first, second = make_fleet(), make_fleet()
    rounds(first, 3)
    before = first.shard_stats()
    second.restore(cut(first, replay_contents=False))
    for ours, theirs in zip(second.shard_stats(), before, strict=True):
        assert ours.size == 0
        assert (ours.inserted, ours.sampled, ours.env_steps) == (
            theirs.inserted,
            theirs.sampled,
            theirs.env_steps,
        )
        assert ours.evicted == ours.inserted
    second.act(40)
    assert sum(stats.size for stats in second.shard_stats()) >= 100


def test_init_params_begins_with_another_runs_network(make_fleet):
    donor = make_fleet(seed=5)
    rounds(donor, 2)
    arrays, _, _ = decode_safetensors(donor.params_bytes())
    fleet = make_fleet(seed=6)
    assert fleet.fingerprint() != donor.fingerprint()
    fleet.init_params(arrays)
    assert fleet.fingerprint() == donor.fingerprint()
    request = EvaluationRequest(3, 5, None, 6, 7)
    assert fleet.evaluate(request).return_mean == donor.evaluate(request).return_mean
    rounds(fleet, 1)
    assert [actor.params_learner_step for actor in fleet.report().actors] == [20, 20, 20]


@pytest.mark.parametrize(
    "changes",
    [{"learner__target_network": False}, {"learner__target_tau": 0.01}],
    ids=["no-target", "polyak"],
)
def test_init_params_without_hard_syncs_can_still_be_captured_and_restored(make_fleet, changes):
    arrays, _, _ = decode_safetensors(make_fleet(seed=5).params_bytes())
    fleet, resumed = make_fleet(**changes), make_fleet(**changes)
    fleet.init_params(arrays)
    rounds(fleet, 1)
    assert fleet.target_sync_log()["syncs"] == []
    resumed.restore(cut(fleet))
    assert resumed.fingerprint() == fleet.fingerprint()


@pytest.mark.parametrize(
    "name", ["learner.qflt", "planner.qflt", "replay-0.qflt", "replay-1.qflt", "actor-2.qflt"]
)
def test_restore_of_a_damaged_state_is_a_checkpoint_error_naming_whose(make_fleet, name):
    first, second = make_fleet(), make_fleet()
    rounds(first, 2)
    files = cut(first)
    capture = decode_capture(files[name])
    for damaged in (
        b"",
        bytes(files[name])[:-1],
        b"".join(encode_capture(Capture({}, capture.arrays))),
        b"".join(encode_capture(Capture({key: [] for key in capture.meta}, {}))),
    ):
        with pytest.raises(CheckpointError, match=r"shard|learner|network|actor"):
            second.restore({**files, name: memoryview(damaged)})
