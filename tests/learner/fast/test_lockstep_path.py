"""A lockstep run's path is part of its configuration: runs with and without a package."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from qfleet.common.config import NetworkConfig
from qfleet.learner.fast.backends import has_fast_form
from qfleet.run_files.checkpoint import MANIFEST
from qfleet.settings.config_loading import load_config
from qfleet.training import train

RUN = {
    "runtime": "local",
    "network.hidden_sizes": [8],
    "network.normalization": "batch",
    "network.value_min": None,
    "network.value_max": None,
    "actors.count": 1,
    "actors.envs_per_actor": 2,
    "replay.min_size_to_sample": 20,
    "learner.device": "cpu",
    "learner.batch_size": 4,
    "learner.updates_per_call": 4,
    "learner.optimizer": "sgd",
    "learner.loss": "huber",
    "learner.double_q": True,
    "learner.max_grad_norm": 1.0,
    "learner.target_tau": None,
    "learner.target_update_period_learner_steps": 8,
    "learner.publish_period_learner_steps": 4,
    "eval.period_learner_steps": 4000,
    "eval.confirm_episodes": 1,
    "run.max_learner_steps": 100,
}
"""A run that the package of the small plan is for."""


@pytest.fixture
def no_package(tmp_path, monkeypatch):
    """Takes the package away; what it gives puts it back."""

    def away():
        monkeypatch.setenv("QFLEET_CACHE", str(tmp_path / "empty"))
        monkeypatch.setenv("CXX", "no-such-compiler")

    return away


def saved_mode(run):
    return yaml.safe_load((run / "config.yaml").read_text())["learner"]["compile"]


def test_lockstep_run_says_and_keeps_the_path_that_it_found(
    warm, no_package, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setenv("QFLEET_CACHE", str(tmp_path / "empty"))
        eager = train(load_config("cartpole", [], RUN), run_dir=tmp_path / "eager")
        assert "yes (lockstep, learner.compile off)" in capsys.readouterr().out
    assert (eager.learner_path, saved_mode(tmp_path / "eager")) == ("eager", "off")

    compiled = train(load_config("cartpole", [], RUN), run_dir=tmp_path / "compiled")
    assert "yes (lockstep, learner.compile required)" in capsys.readouterr().out
    assert (compiled.learner_path, saved_mode(tmp_path / "compiled")) == ("compiled", "required")
    [checkpoint] = (tmp_path / "compiled" / "checkpoints").glob("ckpt-*")
    assert json.loads((checkpoint / MANIFEST).read_text())["compile"] == "required"

    # The same configuration gives the same bits, whatever has come into the cache meanwhile.
    saved = str(tmp_path / "eager" / "config.yaml")
    again = train(load_config(None, [saved], {}), run_dir=tmp_path / "again")
    assert again.learner_path == "eager"
    assert again.params_sha256 == eager.params_sha256

    # Where it cannot be taken, nothing else is taken in its place.
    no_package()
    saved = str(tmp_path / "compiled" / "config.yaml")
    repeated = train(load_config(None, [saved], {}), run_dir=tmp_path / "repeated")
    assert repeated.exit_code == 2
    longer = load_config("cartpole", [], {**RUN, "run.max_learner_steps": 200})
    resumed = train(longer, resume=str(tmp_path / "compiled"))
    assert (resumed.exit_code, resumed.learner_steps) == (2, 0)
    assert capsys.readouterr().err.count("no-such-compiler` is not on the PATH; install g++") == 2


@pytest.mark.parametrize(
    ("changes", "device", "is_there"),
    [
        ({}, "cpu", True),
        ({"learning_rate": 0.5}, "cpu", True),
        ({"batch_size": 5}, "cpu", False),
        ({}, "cuda", True),
        ({"factory": "nets:make"}, "cuda", False),
    ],
    ids=str,
)
def test_has_fast_form_of_the_very_run(warm, plan_of, changes, device, is_there):
    assert has_fast_form(plan_of(**changes), warm.environment, device) is is_there


def test_convolutions_have_a_fast_form_on_a_gpu_alone(warm, plan_of):
    plan = replace(plan_of(), network=NetworkConfig(kind="small"))
    forms = [has_fast_form(plan, warm.environment, device) for device in ("cpu", "cuda")]
    assert forms == [False, True]
