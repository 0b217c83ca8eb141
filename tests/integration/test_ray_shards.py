"""Several replay shards, asynchronous: all of them are drawn from, and every actor plays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from qfleet import training
from qfleet.common.capture_stream import decode_capture
from qfleet.settings.config_auto import resolve_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

CHI_SQUARED = {2: 10.83, 4: 16.27}
"""At p = 0.001, for one shard less in degrees of freedom."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_draws_follow_the_mass_of_every_shard_and_every_actor_plays_to_the_end(
    tmp_path, config, outcomes, shards
):
    run = tmp_path / "run"

    def played_until(**budget):
        summary = training.train(
            config(
                actors__count=4,
                replay__shards=shards,
                replay__samples_per_insert=None,
                **budget,
            ),
            **({"resume": str(run)} if outcomes else {"run_dir": run}),
        )
        assert (summary.status, summary.exit_code) == ("finished", 0)
        return summary, outcomes[-1].session.report

    # Once all are full they are of one mass for good: what is drawn after that is counted between
    # two moments in which nothing moves.
    begun, first = played_until(run__max_learner_steps=1_000_000, run__max_env_steps=8000)
    assert all(stats.size == 2000 // shards for stats in first.shards)
    _, last = played_until(run__max_learner_steps=begun.learner_steps + 3000)

    drawn = np.array(
        [b.sampled - a.sampled for a, b in zip(first.shards, last.shards, strict=True)]
    )
    expected = drawn.sum() / shards
    assert drawn.sum() > 40_000
    assert ((drawn - expected) ** 2 / expected).sum() < CHI_SQUARED[shards]

    played = {slot.slot: slot.env_steps for slot in first.slots}
    assert sorted(played) == [0, 1, 2, 3]
    assert all(slot.env_steps > played[slot.slot] for slot in last.slots)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_every_shard_keeps_the_ratio_of_its_own_limiter(tmp_path, config, outcomes, shards):
    summary = training.train(
        config(
            actors__count=4,
            replay__shards=shards,
            replay__samples_per_insert=4.0,
            run__max_learner_steps=1500,
            actors__chunk_transitions=32,
            learner__max_blocks_per_request=1,
        ),
        run_dir=tmp_path / "run",
    )
    assert (summary.status, summary.exit_code, summary.role_restarts) == ("finished", 0, 0)
    for stats in outcomes[0].session.report.shards:
        assert stats.sampled > 1000
        owed = 4.0 * (stats.inserted - -(-100 // shards))
        assert stats.sampled == pytest.approx(owed, rel=0.5)


PLAYED, UPDATES, FIRST_COUNTED = 256, 5000, 1000
FIXED = """
import os
import time

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

PLAYED, MEET_AT = 256, 200
BATCH = 16


class Rising(gymnasium.Env):
    \"""Each step returns more than the one before, then hardly any is played; tells which it is.

    The two that play on wait for one another once, so that both memories are full at one time.
    \"""

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, folder):
        self.stream, self.steps = 0, 0
        self.folder = folder
        while True:
            try:
                os.close(os.open(self._file("env"), os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                self.stream += 1

    def _file(self, name):
        return os.path.join(self.folder, f"{name}-{self.stream}")

    def _meet(self):
        open(self._file("met"), "w").close()
        deadline_s = time.monotonic() + 50.0
        while sum(name.startswith("met") for name in os.listdir(self.folder)) < 2:
            assert time.monotonic() < deadline_s, "the other actor never came"
            time.sleep(0.01)

    def _observed(self):
        return np.array([self.stream, self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observed(), {}

    def step(self, action):
        if self.steps == MEET_AT:
            self._meet()
        if self.steps >= PLAYED:
            time.sleep(2.0)
        self.steps += 1
        reward = float(self.steps * (1 + self.stream))
        return self._observed(), reward, self.steps % 40 == 0, False, {}


class Zero(torch.nn.Module):
    \"""Q = 0 whatever is learned, so |TD error| is the reward; notes what it is trained on.\"""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.weight = folder, torch.nn.Parameter(torch.ones(2))

    def forward(self, observations):
        if self.training and len(observations) == BATCH:
            with open(os.path.join(self.folder, f"drawn-{os.getpid()}"), "ab") as file:
                file.write(observations.detach().numpy().tobytes())
        return 0.0 * observations[:, :1] + 0.0 * self.weight


def make_env(folder, render_mode=None):
    return Rising(folder)


def make_network(n_inputs, n_actions, folder):
    return Zero(folder)
"""


def exact_distribution(replay, memories: list[np.ndarray]) -> np.ndarray:
    """P of every item of shards that hold these |TD errors|, one shard after the other."""
    parts = []
    for errors in memories:
        if replay.sampling == "rank":
            ranks = 1 + np.argsort(np.argsort(-errors))
            weights = ranks**-replay.priority_exponent
            parts.append(weights / weights.sum() * len(errors))
        else:
            parts.append((errors + replay.priority_epsilon) ** replay.priority_exponent)
    return np.concatenate(parts) / sum(part.sum() for part in parts)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("sampling", ["prioritized", "rank"])
def test_every_item_of_both_shards_is_drawn_as_often_as_the_formula_says(
    tmp_path, config, sampling
):
    """Nothing moves while draws and priorities are under way: the exact mixture is known."""
    folder = tmp_path / "written"
    folder.mkdir()
    (tmp_path / "fixed_parts.py").write_text(FIXED)
    wanted = config(
        env__factory="fixed_parts:make_env",
        env__kwargs={"folder": str(folder)},
        network__factory="fixed_parts:make_network",
        network__kwargs={"folder": str(folder)},
        actors__count=2,
        actors__envs_per_actor=1,
        actors__n_step=1,
        actors__chunk_transitions=32,
        replay__shards=2,
        replay__sampling=sampling,
        replay__min_size_to_sample=2 * PLAYED,  # only what is played fast is ever drawn
        replay__samples_per_insert=None,
        learner__compile="off",
        eval__period_learner_steps=1_000_000,
        eval__solved_at_return=None,
        run__max_learner_steps=UPDATES,
    )
    summary = training.train(wanted, run_dir=tmp_path / "run")
    assert (summary.status, summary.exit_code, summary.schedule) == ("finished", 0, "async")

    items, memories = [], []
    for path in sorted((tmp_path / "run" / "latest").glob("replay-*.qflt")):
        rows = decode_capture(path.read_bytes()).arrays
        fast = rows["column.observation"][:, 1] < PLAYED
        items += [tuple(row) for row in rows["column.observation"][fast].tolist()]
        memories.append(rows["column.n_step_return"][fast].astype(np.float64))
    assert [len(memory) for memory in memories] == [PLAYED, PLAYED]

    [written] = [path for path in folder.glob("drawn-*") if path.stat().st_size > 1e5]
    everything = np.fromfile(written, dtype="<f4").reshape(UPDATES, 16, 2)
    # The first requests were split before both shards had told that they were full.
    drawn = everything[FIRST_COUNTED:].reshape(-1, 2)
    place = {item: number for number, item in enumerate(items)}
    counts = np.bincount([place[tuple(row)] for row in drawn.tolist()], minlength=len(items))
    replay = resolve_config(wanted, None, cpus=2, gpus=0).replay
    expected = len(drawn) * exact_distribution(replay, memories)
    assert expected.min() > 5
    assert chisquare(counts, expected).pvalue > 1e-6
    # What one shard's own probabilities would give, without the other's mass, is told apart.
    if sampling == "prioritized":
        halves = [exact_distribution(replay, [memory]) / 2 for memory in memories]
        alone = len(drawn) * np.concatenate(halves)
        assert chisquare(counts, alone).pvalue < 1e-6
