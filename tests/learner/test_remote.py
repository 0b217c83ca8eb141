"""The learner's shell without Ray around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.remote import LearnerShell
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
TIMEOUT_S = 30.0


def make_shell() -> LearnerShell:
    config = Config.model_validate({"learner": {"compile": "off"}, "actors": {"count": 1}})
    resolved = resolve_config(config, SPEC, cpus=2, gpus=0)
    return LearnerShell(plan_to_json(run_plans(resolved).learner), SPEC.to_json(), [], "cpu")


def test_await_evaluation_ends_with_the_run_and_not_with_its_time():
    shell = make_shell()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shell.await_evaluation, 10 * TIMEOUT_S, 0)
        shell.request_stop()

        assert waiting.result(TIMEOUT_S) is None


def test_await_evaluation_after_its_time_is_none():
    assert make_shell().await_evaluation(0.0, 0) is None


def test_run_that_is_called_again_after_its_end_tells_the_step_and_publishes_nothing():
    shell = make_shell()
    assert not shell.status()["has_ended"]
    shell.request_stop()

    assert shell.run() == 0
    assert shell._publisher.offer().version == 0


def test_status_says_that_the_loop_has_ended_and_not_that_it_broke(monkeypatch):
    shell = make_shell()
    shell._plan = replace(shell._plan, max_learner_steps=0)

    assert shell.run() == 0
    assert shell.status()["has_ended"]

    broken = make_shell()
    monkeypatch.setattr(broken._feed, "blocks", lambda core: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.run()
    assert not broken.status()["has_ended"]
    monkeypatch.setattr(broken._feed, "blocks", lambda core: iter(()))
    with pytest.raises(ZeroDivisionError):  # the same to a second call
        broken.run()


def test_run_that_is_called_again_after_its_budget_trains_no_more(monkeypatch):
    shell = make_shell()
    shell._plan = replace(shell._plan, max_learner_steps=0)
    assert not shell.status()["has_begun"]
    shell.run()
    assert shell.status()["has_begun"]
    shell._plan = replace(shell._plan, max_learner_steps=10**6)
    monkeypatch.setattr(shell._feed, "blocks", lambda core: 1 / 0)
    assert shell.run() == 0
