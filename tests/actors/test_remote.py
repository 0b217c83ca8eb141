"""The actor's shell without Ray around it: a call of `run` that is repeated."""

from __future__ import annotations

import pytest

from qfleet.actors.remote import ActorShell
from qfleet.common.errors import EnvironmentFailedError
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


@pytest.fixture
def shell(monkeypatch):
    config = Config.model_validate({"actors": {"count": 1, "envs_per_actor": 2}})
    plan = run_plans(resolve_config(config, SPEC, cpus=2, gpus=0)).actor
    shell = ActorShell(plan_to_json(plan), SPEC.to_json(), [], "run", 0, 0, [0, 1])
    monkeypatch.setattr(shell, "_await_first_params", lambda shard: None)
    return shell


def test_run_that_is_called_again_after_an_error_raises_it_and_plays_no_more(shell, monkeypatch):
    def fail(sender):
        raise EnvironmentFailedError("it fell over")

    monkeypatch.setattr(shell, "_play", fail)
    assert not shell.ping()["has_begun"]
    with pytest.raises(EnvironmentFailedError, match="fell over"):
        shell.run(None)
    assert shell.ping()["has_begun"]
    monkeypatch.setattr(shell, "_play", lambda sender: 1 / 0)
    with pytest.raises(EnvironmentFailedError, match="fell over"):
        shell.run(None)


@pytest.mark.parametrize("is_stopped_before", [True, False])
def test_run_that_is_called_again_after_its_end_tells_the_counters(
    shell, monkeypatch, is_stopped_before
):
    monkeypatch.setattr(shell, "_play", lambda sender: shell.request_stop())
    if is_stopped_before:
        shell.request_stop()
    first = shell.run(None)
    monkeypatch.setattr(shell, "_play", lambda sender: 1 / 0)
    assert shell.run(None) == first
    assert first["has_begun"] is not is_stopped_before
