"""The learner's shell without Ray around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
