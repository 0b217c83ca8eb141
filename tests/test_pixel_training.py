"""Whole runs from pixels in the local runtime: they learn on frames, and leave what can be used."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qfleet
from qfleet.command_line import cli
from qfleet.common.config import EnvConfig
from qfleet.pictures.agent_view import AgentView
from qfleet.pictures.recording import read_frames
from qfleet.run_files.resume import load_saved_config
from qfleet.run_files.summary import read_summary
from qfleet.settings.config_loading import load_config
from qfleet.training import train

SMALL = {
    "runtime": "local",
    "env.frame_size": 36,
    "env.frame_stack": 3,
    "network.hidden_sizes": [16],
    "actors.envs_per_actor": 2,
    "actors.max_chunk_transitions": "auto",
    "replay.capacity": 300,
    "replay.min_size_to_sample": 60,
    "learner.batch_size": 8,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 1000,
    "eval.episodes": 2,
    "eval.confirm_episodes": 3,
    "run.max_learner_steps": 60,
    "metrics.console": "none",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(preset: str = "cartpole-pixels", **changes: Any) -> Any:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(preset, [], {**SMALL, **overrides})


def test_train_same_seed_same_parameters(tmp_path):
    first = train(config(), run_dir=tmp_path / "first")
    again = train(config(), run_dir=tmp_path / "again")
    other = train(config(seed=2), run_dir=tmp_path / "other")

    assert first.params_sha256 == again.params_sha256 != other.params_sha256
    assert (first.learner_steps, first.exit_code) == (60, 0)
    assert first.accounting.is_balanced
    assert first.accounting.rejected == 0
    assert first.accounting.evicted == 0


def test_train_on_gymnasiums_frames_and_with_prioritized_replay(tmp_path):
    changes = {"env__renderer": "gymnasium", "replay__sampling": "prioritized"}

    summary = train(config(**changes), run_dir=tmp_path / "run")

    assert summary.learner_steps == 60
    assert summary.accounting.is_balanced
    assert summary.accounting.rejected == 0


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_train_with_normalization_and_an_old_memory(tmp_path, normalization):
    """The ring wraps: rows whose frames are gone would be drawn as noise or refused."""
    changes = {"network__normalization": normalization, "replay__capacity": 60}

    summary = train(config(**changes), run_dir=tmp_path / "run")

    assert summary.accounting.evicted > 0
    assert summary.accounting.is_balanced


def test_a_trained_policy_acts_on_stacks_of_the_runs_own_environment(tmp_path):
    train(config(), run_dir=tmp_path / "run")
    policy = qfleet.load_policy(tmp_path / "run" / "latest")
    env = qfleet.make_env(tmp_path / "run", render_mode="rgb_array")

    observation, _ = env.reset(seed=1)
    assert (observation.dtype, observation.shape) == (np.uint8, (3, 18, 36))
    assert policy.act(observation) in (0, 1)
    assert policy.q_values(np.stack([observation, observation])).shape == (2, 2)
    picture: Any = env.render()
    assert picture.shape == (400, 600, 3)
    with pytest.raises(ValueError, match=r"must be uint8 \[3, 18, 36\] or a batch"):
        policy.act(observation[0])


def test_play_films_the_agents_stacked_frames_beside_the_game(tmp_path):
    train(config(), run_dir=tmp_path / "run")
    latest = tmp_path / "run" / "latest"
    policy = qfleet.load_policy(latest)
    env = qfleet.make_env(tmp_path / "run", render_mode="rgb_array")
    view, expected, is_over = AgentView(policy.q_values, policy.spec), [], False
    observation, _ = env.reset(seed=5)
    while not is_over:
        expected.append(view.beside(env.render(), observation))
        observation, _, terminated, truncated, _ = env.step(policy.act(observation))
        is_over = terminated or truncated
    expected.append(view.beside(env.render(), observation))
    env.close()

    assert cli.main(["play", str(latest), "--seed", "5", "--video", "play.mp4"]) == 0

    height, width, _ = expected[0].shape
    shown = [frame[:height, :width].astype(int) for frame in read_frames(tmp_path / "play.mp4")]
    first, last = expected[0].astype(int), expected[-1].astype(int)
    blank = view.beside(expected[0][:, :600], np.zeros_like(observation)).astype(int)

    def apart(one, other):
        """The panel's part that differs by more than a codec loses."""
        return (np.abs(one - other)[:, 600:] > 32).mean()

    assert apart(shown[0], first) < 0.5 * min(apart(shown[0], last), apart(shown[0], blank))
    assert apart(shown[-1], last) < 0.5 * min(apart(shown[-1], first), apart(shown[-1], blank))


def test_a_policy_is_scored_on_gymnasiums_frames_as_on_ours(tmp_path):
    train(config(), run_dir=tmp_path / "run")
    policy = qfleet.load_policy(tmp_path / "run" / "latest")
    ours = config().env
    theirs = EnvConfig(**{**ours.model_dump(), "renderer": "gymnasium"})

    returns = [qfleet.evaluate(policy, env, episodes=4, seed=1) for env in (ours, theirs)]

    assert [len(one) for one in returns] == [4, 4]
    assert all((one >= 1).all() for one in returns)


def test_train_tutorial_pixels_is_the_courses_schedule(tmp_path, capsys):
    """ε falls by episodes; a thousand updates an episode would take a CPU minutes, so eight."""
    wanted = load_config(
        "tutorial-pixels",
        [],
        {
            "runtime": "local",
            "env.frame_size": 36,
            "learner.updates_per_episode": 8,
            "learner.publish_period_learner_steps": 8,
            "learner.target_update_period_learner_steps": 16,
            "eval.period_learner_steps": 1_000,
            "actors.epsilon_decay_episodes": 4,
            "run.max_episodes": 4,
            "eval.confirm_episodes": 2,
            "metrics.console": "json",
        },
    )

    summary = train(wanted, run_dir=tmp_path / "run")

    assert (summary.learner_steps, summary.stop_reason) == (32, "max_episodes")
    assert summary.target_syncs == 1 + 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    episodes = [event for event in events if event["event"] == "episode"]
    assert [event["episode"] for event in episodes] == [1, 2, 3, 4]
    assert sum(event["length_env_steps"] for event in episodes) == summary.env_steps
    epsilons = [event["epsilon"] for event in episodes]
    np.testing.assert_allclose(epsilons, [1 - 0.995 * k / 4 for k in range(4)])
    assert read_summary(tmp_path / "run").run_id == summary.run_id


def test_train_tutorial_pixels_with_the_chapters_own_class(tmp_path, monkeypatch):
    """`ConvNet(8, 2)` as the chapter prints it, in a file of the working directory."""
    beside = (Path(__file__).parent / "common" / "test_conv_networks.py").read_text()
    network = re.search(r"^class ConvNet.*?^        \)$", beside, re.MULTILINE | re.DOTALL)
    (tmp_path / "chapter.py").write_text(f"from torch import nn\n\n\n{network[0]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = load_config(
        "tutorial-pixels",
        [],
        {
            "runtime": "local",
            "network.factory": "chapter:ConvNet",
            "learner.batch_size": 4,
            "learner.updates_per_episode": 2,
            "learner.publish_period_learner_steps": 2,
            "learner.target_update_period_learner_steps": 2,
            "eval.period_learner_steps": 1_000,
            "eval.episodes": 1,
            "eval.confirm_episodes": 1,
            "eval.max_episode_steps": 5,
            "run.max_episodes": 2,
            "metrics.console": "none",
        },
    )

    summary = train(wanted, run_dir=tmp_path / "run")

    assert (summary.learner_steps, summary.stop_reason) == (4, "max_episodes")
    held = qfleet.load_policy(tmp_path / "run" / "latest", allow_code=True)
    assert held.q_values(np.zeros((8, 84, 84), dtype=np.uint8)).shape == (1, 2)


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_train_interrupted_and_resumed_equals_one_run_straight(tmp_path, sampling):
    """Frames, numbers and open windows go through the checkpoint; the ring has wrapped by then."""
    wanted = config(
        replay__sampling=sampling,
        replay__capacity=80,
        actors__count=2,
        replay__shards=2,
        replay__min_size_to_sample=40,
        eval__period_learner_steps=30,
    )
    straight = train(wanted, run_dir=tmp_path / "straight")
    half = train(
        wanted, lambda report: os.kill(os.getpid(), signal.SIGINT), run_dir=tmp_path / "parts"
    )
    assert (half.stop_reason, half.learner_steps < 60) == ("SIGINT", True)

    resumed = train(wanted, resume=str(tmp_path / "parts"))

    assert resumed.resume_kind.startswith("exact")
    assert resumed.params_sha256 == straight.params_sha256
    assert resumed.accounting == straight.accounting
    assert resumed.accounting.evicted > 0
    assert resumed.accounting.rejected == 0


def test_train_resumed_without_contents_leaves_out_what_names_lost_frames(tmp_path):
    wanted = {"run__checkpoint_replay": "none", "actors__n_step": 3}
    train(config(run__max_learner_steps=40, **wanted), run_dir=tmp_path / "run")

    resumed = train(config(run__max_learner_steps=60, **wanted), resume=str(tmp_path / "run"))

    assert resumed.learner_steps == 60
    assert resumed.accounting.is_balanced


def test_train_on_planes_same_seed_same_parameters_and_a_policy_that_plays(tmp_path):
    planes = {key: value for key, value in SMALL.items() if not key.startswith("env.")}
    changes = {**planes, "eval.period_learner_steps": 20, "eval.solved_at_return": None}
    config = load_config("minatar-breakout", [], changes)

    runs = [train(config, run_dir=tmp_path / name) for name in ("first", "again")]

    assert runs[0].params_sha256 == runs[1].params_sha256
    assert runs[0].accounting.is_balanced
    assert runs[0].eval_return_mean is not None
    policy = qfleet.load_policy(tmp_path / "first")
    env = qfleet.make_env(tmp_path / "first")
    observation, _ = env.reset(seed=1)
    assert policy.q_values(observation).shape == (1, 6)


def test_train_atari_learns_clipped_rewards_and_reports_real_scores(tmp_path):
    small = {key: value for key, value in SMALL.items() if key != "env.frame_stack"}
    changes = {**small, "eval.max_episode_steps": 40, "run.max_learner_steps": 40}
    config = load_config("ALE/Pong-v5", [], {**changes, "eval.period_learner_steps": 20})

    summary = train(config, run_dir=tmp_path / "run")

    assert summary.learner_steps == 40
    assert summary.accounting.is_balanced
    assert summary.eval_return_mean is not None
    assert summary.precision in ("float32", "bfloat16")  # measured, and written down
    assert load_saved_config(tmp_path / "run").learner.precision == summary.precision
    assert summary.play == "4 frames a step, sticky actions (0.25), 0 to 30 no-ops at the start"
    assert read_summary(tmp_path / "run") == summary
