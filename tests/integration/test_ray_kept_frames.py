"""A real asynchronous run whose learner keeps the shards' frames, as on a GPU, and roles die.

The environment's pictures and rewards tell the step, so the learner can see whose stacks it has.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from qfleet.learner.remote import RAY_OPTIONS, LearnerShell
from qfleet.settings.config_loading import load_config
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

MODULE = """
import gymnasium
import numpy as np
from gymnasium import spaces
from torch import nn

class Counting(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (24, 24), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.end = 0, int(self.np_random.integers(5, 300))
        return self.picture(), {}

    def picture(self):
        picture = np.zeros((24, 24), np.uint8)
        picture[0, :2] = divmod(self.step_number, 256)
        return picture

    def step(self, action):
        reward = float(self.step_number)
        self.step_number += 1
        return self.picture(), reward, self.step_number == self.end, False, {}

def make(render_mode=None):
    return Counting()

class Network(nn.Module):
    def __init__(self, shape, n_actions):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 576, n_actions))

    def forward(self, frames):
        return self.layers(frames / 255.0)
"""
CONFIG = {
    "env.factory": "counting:make",
    "env.frame_stack": 3,
    "env.frame_size": 24,
    "network.factory": "counting:Network",
    "actors.count": 2,
    "actors.envs_per_actor": 2,
    "actors.n_step": 1,
    "replay.capacity": 600,
    "replay.shards": 2,
    "replay.sampling": "prioritized",
    "replay.min_size_to_sample": 100,
    "learner.batch_size": 16,
    "learner.updates_per_call": 2,
    "learner.learning_rate": 1e-6,
    "learner.max_blocks_per_request": 3,
    "learner.compile": "off",
    "learner.precision": "float32",
    "eval.period_learner_steps": 600,
    "eval.episodes": 1,
    "eval.confirm_episodes": 1,
    "eval.solved_at_return": 1e9,
    "run.max_learner_steps": 2200,
    "run.checkpoint_period_s": 1.0,
    "metrics.console": "plain",
}


def seeing(shell, told):
    """A subclass that keeps frames and looks at what it is shown; in here, so that it travels."""

    class SeeingLearner(shell):
        def __init__(self, *args):
            import json

            import numpy as np

            from qfleet.learner import batch_stager, remote

            remote.keeps_frames = lambda device, n_bytes: n_bytes > 0
            super().__init__(*args)
            stage, seen = batch_stager.BatchStager.stage, {"frames": 0, "stacks": 0, "wrong": 0}

            def steps(stacks):
                first = stacks.numpy()[..., 0, :2].astype(np.int64)
                return first[..., 0] * 256 + first[..., 1]

            def looked_at(stager, sample):
                batches = stage(stager, sample)
                played = sample.columns["n_step_return"].astype(np.int64)[..., np.newaxis]
                before = np.arange(-2, 1)
                wrong = steps(batches.observations) != np.maximum(0, played + before)
                wrong |= steps(batches.next_observations) != np.maximum(0, played + 1 + before)
                seen["frames"] += sum(len(news.places) for news in sample.new_frames.values())
                seen["stacks"] += 2 * played.size
                seen["wrong"] += int(np.count_nonzero(wrong.any(axis=-1)))
                told.with_suffix(".new").write_text(json.dumps(seen))
                told.with_suffix(".new").replace(told)  # it is read meanwhile
                return batches

            batch_stager.BatchStager.stage = looked_at

    return SeeingLearner


@pytest.mark.timeout(120)
def test_stacks_are_right_over_roles_that_are_killed(tmp_path, ray_started, monkeypatch, capsys):
    (tmp_path / "counting.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    told = tmp_path / "seen.json"
    learner = ray_started.remote(**RAY_OPTIONS)(seeing(LearnerShell, told))
    monkeypatch.setattr("qfleet.learner.remote.remote_learner_class", lambda: learner)
    victims, seen = ["replay-1", "learner"], []

    def kill(_):
        if victims:
            seen.append(json.loads(told.read_text()))
            role = victims.pop(0)
            [name] = [n for n in ray_started.util.list_named_actors() if n.endswith(f"/{role}")]
            handle = ray_started.get_actor(name)
            os.kill(ray_started.get(handle.ready.remote(), timeout=30), signal.SIGKILL)

    summary = train(load_config("generic-pixels", [], CONFIG), kill, run_dir=tmp_path / "run")

    out = capsys.readouterr().out
    assert (summary.exit_code, summary.learner_steps) == (0, 2200), out
    assert "replay shard 1 died" in out
    assert "the learner died" in out
    seen.append(json.loads(told.read_text()))  # of the new learner, which counts anew
    assert [one["wrong"] for one in seen] == [0, 0, 0]
    for one in seen[1:]:
        assert one["stacks"] >= 400 * 2 * 16
        assert one["frames"] * 10 < one["stacks"] * 3
