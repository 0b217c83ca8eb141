"""Whole runs in the local runtime: reproducible, resumable, and complete in what they leave."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qfleet import training
from qfleet.api import load_policy, make_env, play_episodes
from qfleet.command_line import cli
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run.runtimes import LockstepObserver
from qfleet.run_files.checkpoint import list_checkpoints
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.run_files.metrics import read_metrics, read_monitor
from qfleet.run_files.summary import read_summary
from qfleet.settings.config import Config, RayConfig
from qfleet.settings.config_loading import load_config
from qfleet.terminal.final_block import final_block
from qfleet.training import run_train, train

SOURCE = Path(__file__).resolve().parents[1] / "src"
SMALL = {
    "runtime": "local",
    "actors.count": 2,
    "actors.envs_per_actor": 2,
    "network.hidden_sizes": [16],
    "replay.capacity": 2000,
    "replay.min_size_to_sample": 100,
    "learner.batch_size": 16,
    "learner.publish_period_learner_steps": 10,
    "learner.target_update_period_learner_steps": 20,
    "eval.period_learner_steps": 1000,
    "eval.episodes": 2,
    "eval.confirm_episodes": 3,
    "run.max_learner_steps": 200,
    "metrics.console": "none",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """`runs/` and modules of the test's own; the import path comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def config(preset="cartpole", **changes):
    small = SMALL if preset == "cartpole" else {"runtime": "local", "metrics.console": "none"}
    if "network__factory" in changes:  # which has no hidden sizes
        small = {key: value for key, value in small.items() if key != "network.hidden_sizes"}
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(preset, [], {**small, **overrides})


def stop_at_evaluation(number):
    """Ctrl-C at the n-th evaluation, as an `on_evaluation`."""
    seen = []

    def on_evaluation(report):
        seen.append(report)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)

    return on_evaluation


# The saved configuration


def test_config_of_a_run_in_a_named_directory_runs_again_as_config(elsewhere, capsys):
    first = config(run__dir="named", run__max_learner_steps=20)
    assert run_train(first, run_dir=first.run.dir) == 0
    words = ["train", "--config", "named/config.yaml"]

    assert cli.main(words) == 0
    assert cli.main([*words, "--run-dir", "other"]) == 0

    fingerprints = [read_summary(Path(run)).params_sha256 for run in ("named", "other")]
    assert fingerprints[0] == fingerprints[1] == read_summary(Path("runs/latest")).params_sha256
    assert Path("runs/latest").resolve() == Path("other").resolve()
    assert len(list(Path("runs").glob("CartPole*"))) == 1
    assert capsys.readouterr().err == ""


# The best


def test_on_evaluation_that_returns_false_stops_the_run(elsewhere):
    seen = []

    def on_evaluation(report):
        seen.append(report.learner_step)
        return len(seen) < 2

    summary = train(config(eval__period_learner_steps=50), on_evaluation, run_dir=elsewhere / "a")

    assert len(seen) == 2
    assert (summary.status, summary.exit_code) == ("stopped", 0)
    assert (summary.stop_reason, summary.resumable) == ("on_evaluation", True)
    assert summary.learner_steps == seen[-1] < 200


def test_best_of_a_solved_run_follows_a_better_evaluation_after_a_resume(elsewhere):
    """What the last block of a solved run proposes: go on, and look for better parameters."""
    wanted = {
        "eval__solved_at_return": 9.0,  # the first evaluation reaches it
        "eval__period_learner_steps": 500,
        "eval__confirm_episodes": 10,
        "eval__episodes": 10,
        "replay__min_size_to_sample": 200,
        "learner__learning_rate": 3e-2,
        "network__hidden_sizes": [32],
    }
    run = elsewhere / "run"
    first = train(config(run__max_learner_steps=5000, **wanted), run_dir=run)
    assert first.status == "solved"
    manifests = [json.loads((run / "best/manifest.json").read_text())]

    on = config(run__max_learner_steps=5000, eval__stop_when_solved=False, **wanted)
    second = train(on, resume=str(run))

    manifests.append(json.loads((run / "best/manifest.json").read_text()))
    before, after = (manifest["evaluation"] for manifest in manifests)
    assert second.eval_return_mean > first.eval_return_mean
    assert after["learner_step"] > before["learner_step"]
    assert (
        second.eval_return_mean
        == after["confirm_return_mean"]
        == read_summary(run).eval_return_mean
    )
    assert second.solved_at_env_step == first.solved_at_env_step == before["env_steps"]
    assert second.stop_reason == "max_learner_steps"


# The same bits


def test_train_same_seed_same_parameters_other_seed_others(tmp_path):
    first, again, other = (
        train(config(seed=seed), run_dir=tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.params_sha256 == again.params_sha256 != other.params_sha256
    assert (first.env_steps, first.accounting) == (again.env_steps, again.accounting)
    assert first.learner_steps == 200
    assert first.accounting.is_balanced
    assert (first.status, first.exit_code, first.stop_reason) == (
        *("finished", 0),
        "max_learner_steps",
    )
    # One at the start, then one every 20 updates.
    assert first.target_syncs == 11


VARIANTS = {
    "uniform": {},
    "prioritized": {"replay__sampling": "prioritized", "replay__shards": 2},
    "rank": {"replay__sampling": "rank", "replay__shards": 2},
    "batch-norm": {"network__normalization": "batch"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_train_interrupted_and_resumed_equals_one_run_straight(tmp_path, changes):
    wanted = config(eval__period_learner_steps=100, **changes)
    straight = train(wanted, run_dir=tmp_path / "straight")
    half = train(wanted, stop_at_evaluation(1), run_dir=tmp_path / "parts")
    assert (half.status, half.exit_code, half.stop_reason) == ("stopped", 130, "SIGINT")
    assert 100 <= half.learner_steps < 200
    assert half.resumable
    resumed = train(wanted, resume=str(tmp_path / "parts"))
    assert resumed.params_sha256 == straight.params_sha256
    assert (resumed.status, resumed.learner_steps) == ("finished", 200)
    assert (resumed.env_steps, resumed.target_syncs) == (straight.env_steps, straight.target_syncs)
    assert resumed.params_version == straight.params_version
    assert resumed.accounting == straight.accounting
    assert resumed.run_id == half.run_id
    assert resumed.eval_return_mean == straight.eval_return_mean
    assert resumed.resume_kind.startswith("exact")


def test_train_resumed_with_a_raised_budget_equals_one_run_straight(tmp_path):
    # One block of 10 per round, and 10·16 draws / 16 = 10 env steps per block: no round is cut.
    straight = train(config(run__max_learner_steps=200), run_dir=tmp_path / "straight")
    train(config(run__max_learner_steps=100), run_dir=tmp_path / "parts")
    resumed = train(config(run__max_learner_steps=200), resume=str(tmp_path / "parts"))
    assert resumed.learner_steps == 200
    assert resumed.params_sha256 == straight.params_sha256


@pytest.mark.parametrize("cut", [130, 155, 199])
@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_train_cut_within_a_round_and_resumed_equals_one_run_straight(tmp_path, sampling, cut):
    # Five blocks of 10 per round: each of these budgets ends one before it is over.
    def budget(learner_steps):
        end = {} if sampling == "uniform" else {"importance_sampling_end_learner_steps": 400}
        return config(
            replay__sampling=sampling,
            **{f"replay__{key}": value for key, value in end.items()},
            learner__updates_per_call=10,
            learner__publish_period_learner_steps=50,
            run__max_learner_steps=learner_steps,
        )

    straight = train(budget(250), run_dir=tmp_path / "straight")
    first = train(budget(cut), run_dir=tmp_path / "parts")
    resumed = train(budget(250), resume=str(tmp_path / "parts"))
    # The last block is a whole one.
    assert first.learner_steps == -(-cut // 10) * 10
    assert resumed.resume_kind == "exact"
    assert resumed.params_sha256 == straight.params_sha256
    assert (resumed.learner_steps, resumed.env_steps) == (250, straight.env_steps)
    assert (resumed.target_syncs, resumed.accounting) == (
        straight.target_syncs,
        straight.accounting,
    )


def test_train_cut_within_an_episodes_updates_and_resumed_equals_one_run_straight(tmp_path):
    def budget(learner_steps):
        return config(
            actors__count=1,
            actors__envs_per_actor=1,
            replay__samples_per_insert=None,
            replay__min_size_to_sample=20,
            learner__updates_per_episode=60,
            run__max_learner_steps=learner_steps,
        )

    straight = train(budget(300), run_dir=tmp_path / "straight")
    train(budget(200), run_dir=tmp_path / "parts")
    resumed = train(budget(300), resume=str(tmp_path / "parts"))
    assert resumed.params_sha256 == straight.params_sha256
    assert resumed.env_steps == straight.env_steps


def test_train_cut_within_a_round_and_resumed_without_contents_plays_first(tmp_path):
    def budget(learner_steps):
        return config(
            learner__updates_per_call=10,
            learner__publish_period_learner_steps=50,
            run__max_learner_steps=learner_steps,
            run__checkpoint_replay="none",
        )

    first = train(budget(130), run_dir=tmp_path / "run")
    resumed = train(budget(250), resume=str(tmp_path / "run"))
    assert resumed.learner_steps == 250
    assert resumed.env_steps >= first.env_steps + 100  # min_size_to_sample comes anew


def test_train_resumed_with_a_raised_budget_keeps_the_schedule_of_beta(tmp_path):
    def budget(learner_steps, **changes):
        return config(
            replay__sampling="prioritized", run__max_learner_steps=learner_steps, **changes
        )

    end = {"replay__importance_sampling_end_learner_steps": 100}
    straight = train(budget(200, **end), run_dir=tmp_path / "straight")
    train(budget(100), run_dir=tmp_path / "parts")
    saved = yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())
    assert saved["replay"]["importance_sampling_end_learner_steps"] == 100
    resumed = train(budget(200), resume=str(tmp_path / "parts"))
    assert resumed.params_sha256 == straight.params_sha256

    other = {"replay__importance_sampling_end_learner_steps": 200}
    with pytest.raises(CheckpointError, match="importance_sampling_end_learner_steps: the run has"):
        train(budget(300, **other), resume=str(tmp_path / "parts"))


def test_train_resumed_without_contents_refills_and_goes_on(tmp_path):
    wanted = {"run__checkpoint_replay": "none"}
    first = train(config(run__max_learner_steps=100, **wanted), run_dir=tmp_path / "run")
    resumed = train(config(run__max_learner_steps=200, **wanted), resume=str(tmp_path / "run"))
    assert resumed.learner_steps == 200
    assert "no replay contents" in resumed.resume_kind
    assert resumed.accounting.is_balanced
    # The memory was filled again before learning went on, at the configured ratio.
    assert resumed.env_steps >= first.env_steps + 100 + 100 * 16 // 16 - 20
    assert resumed.accounting.evicted >= first.accounting.resident


# The course's schedule


def test_train_tutorial_state_is_the_courses_schedule(tmp_path, capsys):
    wanted = config("tutorial-state", run__max_episodes=3, metrics__console="json")
    summary = train(wanted, run_dir=tmp_path / "run")
    assert (summary.learner_steps, summary.stop_reason) == (3000, "max_episodes")
    assert summary.schedule == "lockstep"
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    episodes = [event for event in events if event["event"] == "episode"]
    assert [(e["episode"], e["learner_steps"]) for e in episodes] == [
        *((1, 1000), (2, 2000), (3, 3000))
    ]
    assert sum(e["length_env_steps"] for e in episodes) == summary.env_steps
    period = wanted.learner.target_update_period_learner_steps
    checkpoint = read_checkpoint(tmp_path / "run" / "latest")
    assert checkpoint.learner_step == 3000
    assert summary.target_syncs == 1 + 3000 // period
    monitor = (tmp_path / "run" / "monitor.csv").read_text().splitlines()
    assert len(monitor) == 2 + 3


# What a run leaves


def test_train_leaves_the_promised_files(tmp_path):
    seen = []
    wanted = config(eval__period_learner_steps=100)
    summary = train(wanted, seen.append, run_dir=tmp_path / "run")
    run = tmp_path / "run"
    present = {path.name for path in run.iterdir()}
    assert present >= {
        *("config.yaml", "cmd.txt", "metrics.jsonl", "monitor.csv", "checkpoints", "best"),
        *("latest", "videos", "learning_curve.png", "summary.json"),
    }
    assert [report.learner_step for report in seen] == [100, 200]
    assert read_summary(run) == summary
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["learner"]["updates_per_call"] == 10
    assert saved["actors"]["chunk_transitions"] > 0
    assert read_checkpoint(run / "latest").learner_step == 200
    best = read_checkpoint(run / "best")
    assert best.learner_step == max(seen, key=lambda r: r.return_mean).learner_step
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row["learner_steps"] for row in rows) == 200
    assert summary.eval_episodes == 3
    assert list(summary.phases_s) == [
        *("imports", "roles", "first update", "training", "evaluation", "last checkpoint"),
        *("final score", "artifacts"),
    ]
    assert sum(summary.phases_s.values()) == summary.wall_s
    before_training = sum(summary.phases_s[name] for name in ("imports", "roles"))
    assert summary.startup_s == pytest.approx(before_training, abs=1e-3)
    loop = sum(summary.phases_s[name] for name in ("first update", "training", "evaluation"))
    assert summary.train_s == pytest.approx(loop, abs=1e-3)
    assert summary.eval_s <= summary.phases_s["evaluation"]
    assert Path("runs/latest").resolve() == run.resolve()


def test_train_solved_stops_and_keeps_the_confirmed_parameters(tmp_path):
    seen = []
    wanted = config(eval__period_learner_steps=50, eval__solved_at_return=5)
    summary = train(wanted, seen.append, run_dir=tmp_path / "run")
    assert (summary.status, summary.exit_code, summary.solved) == ("solved", 0, True)
    [report] = seen
    assert report.confirm_episodes == 3
    assert summary.eval_return_mean == report.confirm_return_mean
    assert summary.solved_at_env_step == report.env_steps
    assert 50 <= summary.learner_steps < 200
    again = train(wanted, resume="auto", run_dir=tmp_path / "run")
    assert again.learner_steps == summary.learner_steps


def test_train_keeps_the_newest_checkpoints_only(tmp_path):
    wanted = config(run__checkpoint_period_s=1e-9, run__keep_checkpoints=2)
    train(wanted, run_dir=tmp_path / "run")
    kept = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(kept) == 2
    assert read_checkpoint(kept[-1]).learner_step == 200


def test_train_init_from_begins_with_the_other_runs_parameters(tmp_path):
    donor = train(config(run__max_learner_steps=100), run_dir=tmp_path / "donor")
    heir = train(
        config(run__max_env_steps=100, run__max_learner_steps=None, seed=9),
        run_dir=tmp_path / "heir",
        init_from=str(tmp_path / "donor" / "latest"),
    )
    assert heir.learner_steps == 0
    assert heir.params_sha256 == donor.params_sha256
    assert heir.run_id != donor.run_id


# Resume: what is refused, what is nothing to do


def test_train_resume_auto_starts_continues_and_ends(tmp_path):
    run = tmp_path / "run"
    wanted = config(eval__period_learner_steps=100)
    started = train(wanted, stop_at_evaluation(1), resume="auto", run_dir=run)
    assert started.status == "stopped"
    ended = train(wanted, resume="auto", run_dir=run)
    assert (ended.status, ended.learner_steps) == ("finished", 200)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train(wanted, resume="auto", run_dir=run) == ended
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files
    raised = train(config(run__max_learner_steps=250), resume="auto", run_dir=run)
    assert raised.learner_steps == 250


def test_train_resume_with_other_learning_is_refused_and_nothing_is_touched(tmp_path):
    run = tmp_path / "run"
    train(config(run__max_learner_steps=100), run_dir=run)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(CheckpointError, match=r"learner\.learning_rate"):
        train(config(learner__learning_rate=0.5), resume=str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files


@pytest.mark.parametrize("count", [1, 3])
def test_train_resume_with_another_number_of_actors_goes_on(tmp_path, count):
    run = tmp_path / "run"
    train(config(run__max_learner_steps=100), run_dir=run)
    resumed = train(config(actors__count=count), resume=str(run))
    assert resumed.resume_kind == f"not exact ({count} actors go on where 2 played)"
    assert (resumed.learner_steps, resumed.actors) == (200, count)
    assert resumed.accounting.is_balanced


def test_train_resume_with_another_longest_episode_is_not_called_exact(tmp_path):
    run = tmp_path / "run"
    train(config(run__max_learner_steps=100), run_dir=run)
    resumed = train(config(eval__max_episode_steps=50), resume=str(run))
    assert resumed.resume_kind == "not exact (eval.max_episode_steps is another one)"


def test_train_resume_passes_over_a_damaged_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    train(config(run__max_learner_steps=100), run_dir=run)
    train(config(run__max_learner_steps=150), resume=str(run))
    newest = list_checkpoints(run / "checkpoints")[-1]
    (newest / "learner.qflt").write_bytes(b"rubbish")
    resumed = train(config(metrics__console="plain"), resume=str(run))
    assert resumed.learner_steps == 200
    out = capsys.readouterr().out
    assert "resumed at learner step 100" in out
    assert "damaged checkpoint was passed over" in out


def test_train_in_a_directory_that_holds_a_run_is_refused(tmp_path):
    train(config(run__max_learner_steps=100), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        train(config(), run_dir=tmp_path / "run")


def test_train_refuses_every_bad_setting_at_once_and_writes_nothing(tmp_path):
    wanted = config()
    wanted = wanted.model_copy(
        update={
            "learner": wanted.learner.model_copy(update={"batch_size": 5000}),
            "replay": wanted.replay.model_copy(update={"min_size_to_sample": 5000}),
        }
    )
    with pytest.raises(ConfigError) as caught:
        train(wanted, run_dir=tmp_path / "run")
    assert "learner.batch_size" in str(caught.value)
    assert "replay.min_size_to_sample" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# How it ends when something breaks


def test_train_that_diverges_ends_with_4_and_a_summary(tmp_path, capsys):
    wanted = config(learner__learning_rate=1e30, learner__max_grad_norm=None, learner__loss="mse")
    exit_code = run_train(wanted, run_dir=str(tmp_path / "run"))
    assert exit_code == 4
    summary = read_summary(tmp_path / "run")
    assert (summary.status, summary.exit_code) == ("failed", 4)
    assert "diverged" in summary.stop_reason
    assert "diverged" in capsys.readouterr().err


def test_train_that_diverges_tells_when_its_last_parameters_cannot_be_played(tmp_path, monkeypatch):
    def broken(self, request):
        raise CheckpointError("no screen")

    monkeypatch.setattr("qfleet.fleets.local_fleet.LocalFleet.evaluate", broken)
    wanted = config(learner__learning_rate=1e30, learner__max_grad_norm=None, learner__loss="mse")
    assert run_train(wanted, run_dir=str(tmp_path / "run")) == 4
    summary = read_summary(tmp_path / "run")
    assert "diverged" in summary.stop_reason
    assert summary.incidents == ["the last finite parameters could not be evaluated: no screen"]


@pytest.mark.parametrize("evaluated_at", [None, 10, 20])
def test_evaluate_last_plays_what_was_not_played_yet(evaluated_at):
    last = None if evaluated_at is None else SimpleNamespace(learner_step=evaluated_at)
    evaluations = SimpleNamespace(tracker=SimpleNamespace(last=last))
    session = SimpleNamespace(evaluations=evaluations, learner_steps=20)
    observer, played = LockstepObserver(session, None), []
    observer.evaluate = played.append
    observer.evaluate_last("fleet")
    assert played == ([] if evaluated_at == 20 else ["fleet"])


def test_train_without_target_network_leaves_what_its_divergence_looked_like(tmp_path, capsys):
    """The course's first exercise: it diverges within the updates after the first episodes."""
    wanted = config(
        preset="tutorial-state",
        learner__target_network=False,
        learner__compile="off",
        learner__updates_per_call=10,
        metrics__console="plain",
    )
    assert run_train(wanted, run_dir=str(tmp_path / "run")) == 4

    summary, rows = read_summary(tmp_path / "run"), read_metrics(tmp_path / "run")
    learned = [row for row in rows if "learner/q_mean" in row and row["learner_steps"] > 0]
    steps = [row["learner_steps"] for row in learned]
    assert steps == list(range(10, steps[-1] + 1, 10))  # each block until the end
    assert steps[-1] == summary.learner_steps + 10  # the one that was not finite
    q_means = [row["learner/q_mean"] for row in learned]
    assert q_means[-1] is None or q_means[-1] > 1e6
    assert max(abs(q) for q in q_means if q is not None) > 10 * abs(q_means[0])
    lengths = [length for _, length, _ in read_monitor(tmp_path / "run")]
    assert summary.env_steps == sum(lengths) == rows[-1]["env_steps"] > 0
    assert (tmp_path / "run" / "learning_curve.png").is_file()
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    assert f"episode    {len(lengths)}  return" in capsys.readouterr().out
    # What the last finite parameters are worth, and what their playing looks like.
    (evaluated,) = [row for row in rows if "eval/return_mean" in row]
    assert evaluated["learner_steps"] == summary.learner_steps
    assert summary.eval_return_mean == evaluated["eval/return_mean"]
    assert [row["learner_steps"] for row in rows] == sorted(row["learner_steps"] for row in rows)
    assert list((tmp_path / "run" / "videos").glob("play.*"))
    load_policy(tmp_path / "run")


BROKEN_ENV = """
import sys

import gymnasium
import numpy as np


class Broken(gymnasium.Wrapper):
    steps = 0

    def step(self, action):
        answer = self.env.step(action)
        Broken.steps += 1
        return self.fault(answer) if Broken.steps > self.good_steps else answer

    def fault(self, answer):
        observation, reward, terminated, truncated, info = answer
        if self.kind == "raises":
            raise KeyError("price_table")
        if self.kind == "exits":
            sys.exit(3)
        if self.kind == "nan":
            return np.full(4, np.nan, np.float32), reward, terminated, truncated, info
        return observation, np.array([1.0]), terminated, truncated, info


def make(kind, good_steps=150, render_mode=None):
    env = Broken(gymnasium.make("CartPole-v1", render_mode=render_mode))
    env.kind, env.good_steps = kind, good_steps
    return env
"""
BROKEN_WORDS = {
    "raises": ["step raised KeyError: 'price_table' (", "broken_env.py, line 19, in fault)"],
    "exits": ["step called sys.exit(3); an environment must not end its process"],
    "nan": ["value 0 of the observation is nan; every observation must be finite"],
    "shape": ["the reward array([1.]); a reward must be one number: return float(reward)"],
}


@pytest.fixture
def broken_env(tmp_path, monkeypatch):
    """A configuration whose environment goes wrong in the given way."""
    (tmp_path / "broken_env.py").write_text(BROKEN_ENV)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_env", raising=False)

    def make(**kwargs):
        return config(env__factory="broken_env:make", env__kwargs=kwargs, actors__count=1)

    return make


@pytest.mark.parametrize("kind", BROKEN_WORDS)
def test_train_with_an_environment_that_fails_later_ends_with_5(tmp_path, broken_env, capsys, kind):
    exit_code = run_train(broken_env(kind=kind), run_dir=str(tmp_path / "run"))

    summary = read_summary(tmp_path / "run")
    assert (exit_code, summary.status, summary.exit_code) == (5, "failed", 5)
    said = capsys.readouterr().err
    assert "bug in qfleet" not in said
    assert "learning_rate" not in said
    for words in ["failed in actor 0, sub-environment ", *BROKEN_WORDS[kind]]:
        assert words in summary.stop_reason
        assert words in said


@pytest.mark.parametrize("kind", BROKEN_WORDS)
def test_train_with_an_environment_that_fails_its_trial_starts_nothing(tmp_path, broken_env, kind):
    with pytest.raises(ConfigError, match="failed in the trial before the start at ") as caught:
        train(broken_env(kind=kind, good_steps=3), run_dir=tmp_path / "run")

    assert all(words in str(caught.value) for words in BROKEN_WORDS[kind])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("runtime", ["local", "ray"])
@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("five_outputs:make", r"one for each action of CartPole-v1; it returned \[2, 5\]"),
        ("no_such_module:make", "cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_train_tries_the_network_before_anything_starts(tmp_path, runtime, factory, words):
    (tmp_path / "five_outputs.py").write_text(
        "import torch\ndef make(n_inputs, n_actions): return torch.nn.Linear(n_inputs, 5)\n"
    )

    with pytest.raises(ConfigError, match=words) as caught:
        train(config(runtime=runtime, network__factory=factory), run_dir=tmp_path / "run")

    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_train_unsolved_is_scored_on_seeds_that_selected_nothing(tmp_path):
    seen = []
    wanted = config(eval__period_learner_steps=100, eval__confirm_episodes=7)
    summary = train(wanted, seen.append, run_dir=tmp_path / "run")
    assert (summary.solved, summary.eval_episodes) == (False, 7)
    assert summary.eval_return_mean not in [report.return_mean for report in seen]


def test_train_without_a_time_limit_is_scored_up_to_a_stated_number_of_steps(tmp_path, capsys):
    """Gymnasium's CliffWalking has no limit; an untrained policy walks into a corner for ever."""
    wanted = config(
        env__id="CliffWalking-v1", eval__max_episode_steps=60, eval__period_learner_steps=100
    )

    exit_code = run_train(wanted, run_dir=str(tmp_path / "run"))

    summary = read_summary(tmp_path / "run")
    assert exit_code == 0
    assert (summary.eval_cut_episodes, summary.max_episode_steps) == (3, 60)
    assert -6000 <= summary.eval_return_mean <= -60
    told = [text for text in summary.incidents if "episodes were cut after 60 steps" in text]
    assert len(told) == 1
    lengths = [
        int(line.split(",")[1])
        for line in (tmp_path / "run" / "monitor.csv").read_text().splitlines()[2:]
    ]
    assert lengths
    assert set(lengths) == {60}  # the actors' episodes are cut, too
    block = final_block(summary, tmp_path / "run")
    assert "over 3 fresh greedy episodes, 3 of them cut at 60 steps" in block
    returns, _, n_cut = play_episodes(load_policy(tmp_path / "run"), tmp_path / "run", 2, 0)
    assert (len(returns), n_cut) == (2, 2)
    with contextlib.closing(make_env(tmp_path / "run")) as env:
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(60)] == [False] * 59 + [True]


# Custom parts from the working directory


def test_train_with_factories_from_the_working_directory(tmp_path):
    (tmp_path / "my_parts.py").write_text(
        textwrap.dedent(
            """
            import gymnasium
            from torch import nn

            def make_env(length=0.5, render_mode=None):
                env = gymnasium.make("CartPole-v1", render_mode=render_mode)
                env.unwrapped.length = length
                return env

            def make_network(n_inputs, n_actions, width=8):
                return nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh(),
                                     nn.Linear(width, n_actions))
            """
        )
    )
    wanted = config(
        env__factory="my_parts:make_env",
        env__kwargs={"length": 1.0},
        network__factory="my_parts:make_network",
        network__kwargs={"width": 12},
        eval__period_learner_steps=100,
    )
    first = train(wanted, run_dir=tmp_path / "a")
    again = train(wanted, run_dir=tmp_path / "b")
    assert first.params_sha256 == again.params_sha256
    assert first.env_id == "my_parts:make_env"
    assert first.learner_steps == 200
    other = train(
        wanted.model_copy(
            update={"env": wanted.env.model_copy(update={"kwargs": {"length": 0.2}})}
        ),
        run_dir=tmp_path / "c",
    )
    assert other.params_sha256 != first.params_sha256


# Without Ray


def test_train_local_works_where_ray_is_not_installed(tmp_path):
    code = f"""
        import sys
        sys.modules["ray"] = None
        import qfleet
        config = qfleet.Config.preset("cartpole", {SMALL!r})
        summary = qfleet.train(config, run_dir={str(tmp_path / "run")!r})
        print(summary.status, summary.learner_steps)
        policy = qfleet.load_policy({str(tmp_path / "run" / "latest")!r})
        print(len(qfleet.evaluate(policy, "CartPole-v1", episodes=3)))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["finished", "200", "3"]


def test_first_line_names_the_run_whose_parameters_it_begins_with(elsewhere, capsys):
    train(config(run__max_learner_steps=20, eval__period_learner_steps=10), run_dir="first")
    wanted = config(run__max_learner_steps=20, metrics__console="plain")

    train(wanted, run_dir="second", init_from="first")

    assert (
        capsys.readouterr().out.splitlines()[0].endswith(" · begins with the parameters of first")
    )


def test_header_and_summary_name_the_learners_path_and_why(elsewhere, capsys):
    wanted = config(run__max_learner_steps=20, metrics__console="plain", learner__compile="off")

    summary = train(wanted, run_dir=elsewhere / "run")

    lines = capsys.readouterr().out.splitlines()
    assert "· learner eager (learner.compile off) ·" in lines[0]
    assert "  learner    eager (learner.compile off)" in lines
    assert (summary.learner_path, summary.learner_path_reason) == ("eager", "learner.compile off")


@pytest.mark.parametrize(
    ("asked", "by_command", "by_program"), [(None, True, False), (True, True, True), (False,) * 3]
)
def test_ray_lean_is_on_for_the_command_line_and_off_for_a_program(
    monkeypatch, asked, by_command, by_program
):
    seen = []

    def noting(config, *_):
        seen.append(config.ray.lean)
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr(training, "_train", noting)
    config = Config(ray=RayConfig(lean=asked))
    training.run_train(config)
    training.train(config)
    assert seen == [by_command, by_program]


# A full disk


@pytest.fixture
def disk(monkeypatch):
    """Takes nothing while `is_full`, as the system says it: at a write, or only at a sync."""
    state = SimpleNamespace(is_full=False)

    def unless_full(call):
        def called(*arguments):
            if state.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments)

        return called

    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, unless_full(getattr(os, name)))
    return state


def test_disk_that_is_full_for_a_while_costs_no_step_and_no_row(elsewhere, disk):
    steps = []

    def on_evaluation(report):
        steps.append(report.learner_step)
        disk.is_full = 2 <= len(steps) < 4

    wanted = config(
        eval__period_learner_steps=40, run__checkpoint_period_s=1e-3, metrics__period_s=1e-3
    )
    straight = train(wanted, run_dir=elsewhere / "straight")

    summary = train(wanted, on_evaluation, run_dir=elsewhere / "run")

    assert (summary.status, summary.exit_code, summary.learner_steps) == ("finished", 0, 200)
    assert summary.params_sha256 == straight.params_sha256
    assert read_summary(elsewhere / "run") == summary
    assert summary.failed_writes > 4
    told = [text.split(" ")[0] for text in summary.incidents if "cannot be written" in text]
    assert {"metrics.jsonl", "the"} <= set(told)
    assert len(told) == len(set(told))
    again = {text.split(" ")[0] for text in summary.incidents if "is written again" in text}
    assert again == set(told)
    rows = read_metrics(elsewhere / "run")
    evaluated = [row["learner_steps"] for row in rows if "eval/return_mean" in row]
    assert evaluated == steps
    assert len(steps) == 5
    assert read_checkpoint(elsewhere / "run" / "latest").learner_step == 200
    best = read_checkpoint(elsewhere / "run" / "best").manifest["evaluation"]["return_mean"]
    assert best == max(row["eval/return_mean"] for row in rows if "eval/return_mean" in row)


def test_disk_that_stays_full_ends_as_ever_and_the_summary_is_printed(elsewhere, disk, capsys):
    def on_evaluation(report):
        disk.is_full = True

    summary = train(config(eval__period_learner_steps=40), on_evaluation, run_dir="run")

    assert (summary.status, summary.exit_code, summary.learner_steps) == ("finished", 0, 200)
    assert not Path("run/summary.json").exists()
    printed = capsys.readouterr().err
    told = json.loads(printed[printed.index("{") :].splitlines()[0])
    assert told["params_sha256"] == summary.params_sha256
    assert [p.name for p in Path("run").iterdir() if p.name.startswith(".tmp")] == []


def test_summary_is_written_into_the_room_that_was_kept(elsewhere, monkeypatch):
    """Before the summary the disk is full to the last byte but for the run's own reserve."""
    real = os.fsync

    def fsync(descriptor):
        if Path("run/.tmp-room").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def on_evaluation(report):
        assert Path("run/.tmp-room").stat().st_size == 256 * 1024
        monkeypatch.setattr(os, "fsync", fsync)

    summary = train(config(eval__period_learner_steps=40), on_evaluation, run_dir="run")

    assert summary.failed_writes > 0
    assert read_summary(Path("run")) == summary
    assert not Path("run/.tmp-room").exists()


def test_console_on_a_full_disk_does_not_end_the_run(elsewhere):
    settings = [f"--{key}={value}" for key, value in SMALL.items() if key != "metrics.console"]
    command = [sys.executable, "-m", "qfleet", "train", *settings, "--metrics.console=plain"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, "--run-dir", "run"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=60,
        )

    assert ended.returncode == 0, ended.stderr.decode()
    summary = read_summary(Path("run"))
    assert summary.learner_steps == 200
    assert [text for text in summary.incidents if "the console cannot be written" in text]


def test_run_directory_without_room_is_exit_2(elsewhere, disk, capsys):
    disk.is_full = True

    with pytest.raises(ConfigError, match="No space left"):
        train(config(), run_dir="run")


# Identity and repeats


def test_lockstep_killed_before_its_first_checkpoint_repeats_with_the_same_seeds(elsewhere):
    wanted = config(eval__period_learner_steps=40)
    straight = train(wanted, run_dir="straight")

    class Killed(BaseException):
        pass

    def on_evaluation(report):
        raise Killed

    with pytest.raises(Killed):
        train(wanted, on_evaluation, run_dir="run")
    assert list_checkpoints(Path("run/checkpoints")) == []
    resumed = train(wanted, resume="run")

    assert resumed.resume_kind == "from the start: no checkpoint had been written"
    assert resumed.params_sha256 == straight.params_sha256
    rows, expected = read_metrics(Path("run")), read_metrics(Path("straight"))
    assert [row["env_steps"] for row in rows][-1] == [row["env_steps"] for row in expected][-1]
    assert json.loads(Path("run/identity.json").read_text())["processes"] == 2


def test_metrics_do_not_go_backwards_after_a_resume(elsewhere):
    wanted = config(eval__period_learner_steps=40, metrics__period_s=1e-3)
    train(wanted, run_dir="run")
    newest = list_checkpoints(Path("run/checkpoints"))[-1]
    longer = config(
        eval__period_learner_steps=40, metrics__period_s=1e-3, run__max_learner_steps=400
    )
    train(longer, resume="run")
    shutil.rmtree(list_checkpoints(Path("run/checkpoints"))[-1])
    assert list_checkpoints(Path("run/checkpoints")) == [newest]
    assert read_metrics(Path("run"))[-1]["learner_steps"] == 400

    train(longer, resume="run")

    learner_steps = [row["learner_steps"] for row in read_metrics(Path("run"))]
    assert learner_steps == sorted(learner_steps)
    assert learner_steps[-1] == 400
