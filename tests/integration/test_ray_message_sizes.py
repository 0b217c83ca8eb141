"""Chunks and requests of real roles grow when calls cost much, and nothing is lost thereby."""

from __future__ import annotations

import time

import pytest

from qfleet.cluster.answers import answer
from qfleet.cluster.roles import Roles
from qfleet.common.envs import describe_environment
from qfleet.common.reports import LearnerStats
from qfleet.common.types import ReplayStats
from qfleet.replay_server.remote import RAY_OPTIONS, ReplayServerShell
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def slow_shard(shell):
    """A subclass whose draws take 30 ms longer; in here, so that its code travels."""

    class SlowShard(shell):
        def __init__(self, *args):
            super().__init__(*args)
            quick = self._core.sample

            def slow(*args, **options):
                time.sleep(0.03)
                return quick(*args, **options)

            self._core.sample = slow

    return SlowShard


def until(ask, is_reached):
    while True:
        seen = answer(ask(), "test", "a role")
        if is_reached(seen):
            return seen
        time.sleep(0.05)


@pytest.mark.timeout(90)
def test_requests_and_chunks_grow_where_calls_are_dear(config, ray_started, monkeypatch):
    slow = ray_started.remote(**RAY_OPTIONS)(slow_shard(ReplayServerShell))
    monkeypatch.setattr("qfleet.replay_server.remote.remote_replay_class", lambda: slow)
    wanted = config(
        replay__samples_per_insert=None,
        replay__sampling="prioritized",
        actors__max_chunk_transitions=128,
        learner__max_blocks_per_request=4,
        run__max_learner_steps=100_000,
    )
    resolved = resolve_config(wanted, None, cpus=2, gpus=0)
    spec = describe_environment(wanted.env)
    roles = Roles(run_plans(resolved), spec, run_id="sizes", device="cpu")
    try:
        actor = roles.create_actor(0, 0)
        roles.wait_until_ready()
        learner, [shard] = roles.learner, roles.shards
        answer(learner.set_shards.remote([shard]), "test", "the learner")
        learning, playing = learner.run.remote(), actor.run.remote(shard)

        until(actor.ping.remote, lambda counters: counters["chunk_transitions"] == 128)
        until(learner.status.remote, lambda status: status["blocks_per_request"] == 4)
        answer(learner.request_stop.remote(), "test", "the learner")
        answer(actor.request_stop.remote(), "test", "the actor")
        answer(shard.open_gate.remote(), "test", "the shard")
        steps, counters = answer(learning, "test", "it"), answer(playing, "test", "it")

        stats = ReplayStats(*answer(shard.stats.remote(), "test", "the shard"))
        # Two requests of four blocks may be on their way, what was asked for is drawn in full.
        k = resolved.learner.updates_per_call
        drawn = stats.sampled // 16
        assert steps <= drawn <= steps + (4 + 2 * 4) * k
        assert stats.sampled == drawn * 16
        assert stats.inserted + counters["unsent"] == counters["produced"]
        # A shard as slow as this one may be sent a chunk twice, and stores it once.
        assert stats.gap_chunks == 0
        assert LearnerStats(*answer(learner.status.remote(), "test", "it")["stats"])[0] == steps
    finally:
        roles.kill_all()
