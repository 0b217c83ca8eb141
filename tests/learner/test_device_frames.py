"""Frames kept where the learner is, against the shards' own: by hand on a CPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.types import Array, ReplaySample
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.device_frames import DeviceFrames, has_room

K, B, S = 2, 4, 3
GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
)


class Memories:
    """Shards that are arrays of frames, of which a reader has had some."""

    def __init__(self, shape: tuple[int, ...], n_places: dict[int, int]) -> None:
        self.rng = np.random.default_rng(0)
        self.frames = {i: self._noise(n, shape) for i, n in n_places.items()}
        self.unsent = {shard: set(range(n)) for shard, n in n_places.items()}

    def _noise(self, n: int, shape: tuple[int, ...]) -> Array:
        return self.rng.integers(0, 256, (n, *shape), dtype=np.uint8)

    def overwrite(self, shard: int, place: int) -> None:
        self.frames[shard][place] = self._noise(1, self.frames[shard].shape[1:])[0]
        self.unsent[shard].add(place)

    def grow(self, shard: int, n: int) -> None:
        old = self.frames[shard]
        self.frames[shard] = np.concatenate([old, self._noise(n, old.shape[1:])])
        self.unsent[shard] |= set(range(len(old), len(old) + n))

    def draw(self) -> tuple[ReplaySample, dict[str, Array]]:
        """A sample by place, and its stacks as they are."""
        shards = self.rng.choice(list(self.frames), (K, B)).astype(np.int32)
        lengths = np.vectorize(lambda shard: len(self.frames[shard]))(shards)
        places = [self.rng.integers(0, lengths[..., None], (K, B, S)) for _ in range(2)]
        names = ("observation", "next_observation")
        whole = {
            name: np.stack(
                [
                    np.stack([self.frames[shards[k, b]][named[k, b]] for b in range(B)])
                    for k in range(K)
                ]
            )
            for name, named in zip(names, places, strict=True)
        }
        news = {}
        for shard in np.unique(shards).tolist():
            named = {int(p) for at in places for p in at[shards == shard].ravel()}
            new = np.array(sorted(named & self.unsent[shard]), dtype=np.int64)
            self.unsent[shard] -= named
            frames = self.frames[shard]
            news[shard] = NewFrames("r", 1, len(frames), new, frames[new], np.ones_like(new))
        ones = np.ones((K, B), np.float32)
        columns = {
            "observation": places[0].astype(np.int32),
            "action": np.zeros((K, B), np.int32),
            "n_step_return": ones,
            "bootstrap_discount": ones,
            "next_observation": places[1].astype(np.int32),
        }
        return ReplaySample(columns, shards.astype(np.int64), shards, ones, new_frames=news), whole


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("shape", [(8, 8), (6, 6), (3, 2), (3, 5)])  # words of 8, 4, 2 and 1 bytes
@pytest.mark.parametrize("n_places", [{0: 9}, {0: 9, 1: 30, 3: 5}])
def test_stage_unfolds_stacks_from_frames_that_were_sent_once(shape, n_places, device):
    memories, stager = Memories(shape, n_places), BatchStager(torch.device(device))
    sent = []
    for turn in range(40):
        sample, whole = memories.draw()
        assert sample.new_frames is not None
        sent.append(sum(len(news.places) for news in sample.new_frames.values()))
        batches = stager.stage(sample)
        np.testing.assert_array_equal(batches.observations.cpu().numpy(), whole["observation"])
        np.testing.assert_array_equal(
            batches.next_observations.cpu().numpy(), whole["next_observation"]
        )
        assert (batches.observations.dtype, batches.observations.device.type) == (
            torch.uint8,
            device,
        )
        if turn == 20:
            memories.grow(0, 7)
        memories.overwrite(int(memories.rng.choice(list(n_places))), turn % 5)

    assert sum(sent) <= sum(n_places.values()) + 7 + 40
    assert max(sent[30:]) <= 10


def test_located_leaves_the_sample_as_it_was():
    memories = Memories((2, 2), {2: 6})
    sample, _ = memories.draw()
    before = sample.columns["observation"].copy()
    located = DeviceFrames(torch.device("cpu")).located(sample)
    np.testing.assert_array_equal(sample.columns["observation"], before)
    assert located.columns["observation"].dtype == np.int64


def test_frame_that_was_never_sent_is_an_error():
    memories = Memories((2, 2), {0: 6, 1: 6})
    sample, _ = memories.draw()
    news = sample.new_frames[1]
    fewer = news._replace(places=news.places[1:], frames=news.frames[1:])
    frames = DeviceFrames(torch.device("cpu"))
    with pytest.raises(InvariantError, match="a frame that its shard has not sent"):
        frames.located(dataclasses.replace(sample, new_frames={**sample.new_frames, 1: fewer}))
    frames.located(sample)


def test_has_room_is_for_gpus_with_twice_as_much_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 4000))
    assert has_room("cuda:0", 1000)
    assert not has_room("cuda:0", 1001)
    assert not has_room("cpu", 1)
