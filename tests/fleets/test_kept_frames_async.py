"""An asynchronous learner that keeps frames is shown the stacks that its draws stand for.

Real shards, feed and frames; between them a network that loses requests and answers, and lets them
overtake one another. The oracle is what each shard would have sent as whole stacks.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qfleet.common.messages import encode_chunk
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.pixels.stored_columns import STACKS
from qfleet.common.plan_json import plan_to_json
from qfleet.common.sample_message import decode_shard_sample
from qfleet.common.stage_clock import StageClock
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner import remote_feed, remote_line
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.block_runner import BlockPlanner
from qfleet.learner.plan import REQUESTS_IN_FLIGHT
from qfleet.learner.remote_feed import ReplayFeed
from qfleet.replay_server import remote, row_bytes
from qfleet.replay_server.remote import ReplayServerShell
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

DEPTH, SIDE, BATCH, CAPACITY = 3, 4, 8, 60
SPEC = EnvironmentSpec("E", (DEPTH, SIDE, SIDE), "|u1", 2, None, None, frame_stack=DEPTH)


def plans(capacity, samples_per_insert=None, compression="none", most_blocks=3):
    config = Config.model_validate(
        {
            "env": {"frame_stack": DEPTH},
            "replay": {
                "capacity": 2 * capacity,
                "shards": 2,
                "min_size_to_sample": 2 * BATCH,
                "samples_per_insert": samples_per_insert,
                "compression": compression,
            },
            "learner": {
                "batch_size": BATCH,
                "updates_per_call": 2,
                "max_blocks_per_request": most_blocks,
                "compile": "off",
            },
            "actors": {"count": 2},
        }
    )
    return run_plans(resolve_config(config, SPEC, cpus=2, gpus=0))


class Shard:
    """A shard's process: noise in, samples out, and what whole stacks would have been."""

    def __init__(self, plan, index, seed):
        self.shell = ReplayServerShell(plan_to_json(plan), SPEC.to_json(), "r", index)
        self.index, self.rng = index, np.random.default_rng(seed)
        self.n_frames = self.seq = self.n_sent = self.n_whole = 0
        self.whole = {}
        """By reader and item key: observation and next_observation."""

    def play(self, n_steps):
        """A chunk of a single endless episode, one frame a step."""
        first, self.n_frames = self.n_frames, self.n_frames + n_steps
        oldest = max(first - DEPTH, 0)
        starts = np.arange(oldest, self.n_frames - DEPTH)
        stacks = starts[:, np.newaxis] + np.arange(DEPTH)
        columns = {
            "observation": stacks,
            "action": np.zeros(len(stacks), np.int32),
            "n_step_return": np.zeros(len(stacks), np.float32),
            "bootstrap_discount": np.ones(len(stacks), np.float32),
            "next_observation": stacks + 1,
        }
        frames = self.rng.integers(0, 256, (n_steps, SIDE, SIDE), dtype=np.uint8)
        run = FrameRun(first, max(0, self.n_frames - DEPTH), frames)
        chunk_id = ChunkId("r", self.index, 0, self.seq)
        self.seq += 1
        chunk = TransitionChunk(chunk_id, columns, None, n_steps, 0, (), run)
        self.shell.insert(encode_chunk(chunk), wait=False)

    def sample(self, *arguments):
        data = self.shell.sample(*arguments)
        if data is not None:
            part = decode_shard_sample(data)
            assert part.new_frames is not None, "asked for by place"
            self.n_sent += len(part.new_frames.places)
            stacks = self.shell._core._framed.unfold(part.columns)
            self.n_whole += len(part.item_keys) * 2 * DEPTH
            for row, key in enumerate(part.item_keys.tolist()):
                name = part.new_frames.reader, key
                self.whole[name] = [stacks[column][row] for column in STACKS]
        return data


class Network:
    """Carries calls; `fault_rate` of them end badly, in each way that there is."""

    def __init__(self, ray, new_handle, plan, seed, fault_rate):
        self.ray, self.new_handle, self.plan = ray, new_handle, plan
        self.rng, self.fault_rate = np.random.default_rng(seed), fault_rate
        self.shards = [Shard(plan, index, seed) for index in (0, 1)]
        self.gone = [[], []]
        """Processes that were shards before."""
        self.n_silent = [0, 0]
        self.handles = [new_handle(), new_handle()]
        self.late = []
        """Answers that wait on their way, with their calls."""
        self.counts = {"fine": 0, "lost": 0, "silent": 0, "late": 0, "overtaking": 0}
        for shard in self.shards:
            shard.play(30)

    def faulty(self):
        return self.rng.random() < self.fault_rate

    def serve(self):
        """Something happens while the learner waits."""
        self.ray.now_s += 0.01
        index = int(self.rng.integers(2))
        shard, handle = self.shards[index], self.handles[index]
        if self.rng.random() < 0.5:
            shard.play(int(self.rng.integers(1, 12)))
        for call in handle.open("stats"):
            call.answer(shard.shell.stats())
        for call, data in self.late:
            if not self.faulty() or not call.outcome:
                call.answer(data)
        self.late = [pair for pair in self.late if not pair[0].outcome]
        waiting = [call for call in handle.open("sample") if not hasattr(call, "was_heard")]
        if waiting:
            overtakes = len(waiting) > 1 and self.faulty()
            self.serve_call(shard, waiting[1 if overtakes else 0])
            self.n_silent[index] = sum(not call.outcome for call in handle.calls[-8:])
            self.counts["overtaking"] += overtakes

    def serve_call(self, shard, call):
        call.was_heard = True
        fault = self.rng.choice(["lost before", "lost after", "silent", "late"])
        # Of one question's calls not all are silent: the learner rightly gives such a shard up.
        if not self.faulty() or (fault == "silent" and self.n_silent[shard.index] > 1):
            fault = "fine"
        if fault == "lost before":
            call.answer(self.ray.lost)
        data = shard.sample(*call.arguments) if not call.outcome else None
        if fault == "fine":
            call.answer(data)
        elif fault == "lost after":
            call.answer(self.ray.lost)
        elif fault == "late":
            self.late.append((call, data))
        self.counts[fault.split()[0]] += 1

    def replace(self, feed, index):
        self.gone[index].append(self.shards[index])
        self.shards[index] = Shard(self.plan, index, 1000 + len(self.gone[index]))
        self.shards[index].play(30)
        self.handles[index] = self.new_handle()
        self.late = [(call, data) for call, data in self.late if self.rng.random() < 0.5]
        feed.replace_shard(index, self.handles[index])


@pytest.fixture
def make_network(hand_ray, new_handle):
    ray = hand_ray(remote_feed, remote_line)

    def make(seed, fault_rate, capacity=CAPACITY, **options):
        both = plans(capacity, **options)
        network = Network(ray, new_handle, both.replay, seed, fault_rate)
        stop = threading.Event()
        stop.wait = lambda timeout: network.serve()
        ray.on_idle = network.serve
        planner = BlockPlanner(both.learner)
        feed = ReplayFeed(SPEC, planner, 3, stop, StageClock(), by_place=True)
        sizes = SimpleNamespace(size=1, observe=lambda asking_s, working_s: None)
        feed.blocks_per_request = sizes
        feed.set_shards(network.handles)
        feed.stager = BatchStager(torch.device("cpu"))
        return network, feed

    return make


def shown(network, feed, n_blocks, replaced_at=(), most_blocks=3):
    """Train on so many blocks, and see that their stacks are right."""
    learner = SimpleNamespace(learner_steps=0, fleet_env_steps=0, params_version=0)
    blocks = feed.blocks(learner)
    for number in range(n_blocks):
        feed.blocks_per_request.size = int(network.rng.integers(1, most_blocks + 1))
        if number in replaced_at:
            network.replace(feed, number % 2)
        sample = next(blocks)
        batches = feed.stager.stage(sample)
        stacks = [batches.observations.numpy(), batches.next_observations.numpy()]
        for at in np.ndindex(sample.item_keys.shape):
            shard, key = int(sample.shards[at]), int(sample.item_keys[at])
            name = sample.new_frames[shard].reader, key
            processes = [network.shards[shard], *network.gone[shard]]
            [expected] = [p.whole[name] for p in processes if name in p.whole]
            for got, want in zip(stacks, expected, strict=True):
                np.testing.assert_array_equal(got[at], want, err_msg=str((number, shard, key)))


@pytest.mark.parametrize("seed", range(8))
def test_stacks_are_those_of_the_draws_whatever_is_lost_late_or_overtaken(make_network, seed):
    """Over rings that overwrite themselves dozens of times."""
    network, feed = make_network(seed, 0.3)
    shown(network, feed, 300)
    assert min(network.counts.values()) > 5, network.counts
    assert min(s.shell._core.stats().evicted for s in network.shards) > 5 * CAPACITY


@pytest.mark.parametrize("seed", range(4))
def test_a_new_process_in_a_shards_place_has_sent_nothing(make_network, seed):
    network, feed = make_network(seed, 0.2)
    shown(network, feed, 300, replaced_at=range(40, 300, 27))
    assert min(len(gone) for gone in network.gone) > 3


def test_a_learner_that_begins_anew_with_the_same_shards_is_sent_all_it_needs(make_network):
    network, feed = make_network(1, 0.1)
    shown(network, feed, 60)
    _, second = make_network(2, 0.1)
    second.set_shards(network.handles)
    network.ray.on_idle = network.serve
    second._stop.wait = lambda timeout: network.serve()
    shown(network, second, 100)


def test_without_faults_a_frame_is_sent_about_once(make_network):
    network, feed = make_network(3, 0.0, capacity=1000)
    shown(network, feed, 1500)
    for shard in network.shards:
        assert shard.n_frames > 2000
        assert shard.n_sent < 1.3 * shard.n_frames
        assert shard.n_whole > 15 * shard.n_sent


@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_stacks_are_those_of_the_draws_while_the_shards_memory_grows(
    make_network, monkeypatch, compression
):
    monkeypatch.setattr(row_bytes, "SPARE_FRAMES", 0)
    monkeypatch.setattr(row_bytes, "FRAMES_PER_ROW", 0.5)
    network, feed = make_network(5, 0.2, compression=compression)
    places = [len(s.shell._core._framed.pool._frames) for s in network.shards]
    shown(network, feed, 200)
    for shard, before in zip(network.shards, places, strict=True):
        assert len(shard.shell._core._framed.pool._frames) > 1.5 * before


@pytest.mark.parametrize(("rows", "pause"), [(2, 40), (8, 60)])
def test_hardly_a_draw_is_lost_where_both_shards_hold_requests_back(
    make_network, monkeypatch, rows, pause
):
    """Actors limit the run: a request held back at one shard is overtaken at both, without faults.

    Draws that are let go count at the limiter, so the learner would train on fewer than asked for.
    """
    monkeypatch.setattr(remote, "SAMPLE_HOLD_S", 0.0)
    network, feed = make_network(6, 0.0, capacity=3000, samples_per_insert=8, most_blocks=1)
    until_play, held, n_held = [0, pause // 2], [0, 0], []

    def tick():
        network.ray.now_s += 0.005
        for index, (shard, handle) in enumerate(zip(network.shards, network.handles, strict=True)):
            until_play[index] -= 1
            if until_play[index] <= 0 and shard.shell._core.can_insert(rows):
                shard.play(rows)
                until_play[index] = int(pause * network.rng.uniform(0.5, 1.5))
            for call in handle.open("stats"):
                call.answer(shard.shell.stats())
            for call in handle.open("sample")[:1]:  # one at a time, in order
                held[index] += 1
                data = shard.sample(*call.arguments)
                if data is not None or held[index] == 10:
                    n_held.append(data is None)
                    call.answer(data)
                    held[index] = 0

    network.ray.on_idle = tick
    feed._stop.wait = lambda timeout: tick()
    while sum(n_held) < 20:  # what the limiters let through at first is drawn
        shown(network, feed, 20, most_blocks=1)
    n_held.clear()

    drawn = -sum(shard.shell._core.stats().sampled for shard in network.shards)
    shown(network, feed, 300, most_blocks=1)
    drawn += sum(shard.shell._core.stats().sampled for shard in network.shards)
    assert sum(n_held) > 50
    # What is on its way at the end is drawn and not trained on.
    trained = 300 * 2 * BATCH
    assert drawn - REQUESTS_IN_FLIGHT * 2 * BATCH <= 1.01 * trained
