"""The actor's shell without Ray around it: repeated calls of `run`, and its first parameters."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.actors import remote, remote_params
from qfleet.actors.remote import FIRST_PARAMS_QUESTION_S, FIRST_PARAMS_TIMEOUT_S, ActorShell
from qfleet.common.errors import EnvironmentFailedError, WaitTimeoutError
from qfleet.common.messages import encode_snapshot
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec, ParamsSnapshot
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
NOTHING_YET = [0, 0, None, None]


@pytest.fixture
def unplayed():
    config = Config.model_validate({"actors": {"count": 1, "envs_per_actor": 2}})
    plan = run_plans(resolve_config(config, SPEC, cpus=2, gpus=0)).actor
    return ActorShell(plan_to_json(plan), SPEC.to_json(), [], "run", 0, 0, [0, 1])


@pytest.fixture
def shell(unplayed, monkeypatch):
    monkeypatch.setattr(unplayed, "_await_first_params", lambda shard: None)
    return unplayed


@pytest.fixture
def ray(hand_ray):
    return hand_ray(remote, remote_params)


@pytest.fixture
def shard(new_handle):
    return new_handle()


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


def offer():
    """Of the first parameters, as the shard answers `await_params`."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype("<f4")
        for name, shape in [
            ("0.weight", (64, 4)),
            ("0.bias", (64,)),
            ("2.weight", (64, 64)),
            ("2.bias", (64,)),
            ("4.weight", (2, 64)),
            ("4.bias", (2,)),
        ]
    }
    return [1, 0, encode_snapshot(ParamsSnapshot(1, 0, 0, False, arrays)), None]


def test_first_parameters_are_asked_for_again_when_the_question_or_its_answer_is_lost(
    ray, shard, unplayed
):
    """The first is lost without a word, of the second Ray says so, the third comes too early."""
    answers = iter([None, ray.lost, NOTHING_YET, offer()])

    def tell():
        answer = next(answers)
        if answer is not None:
            shard.open("await_params")[-1].answer(answer)

    ray.on_idle = tell
    unplayed._await_first_params(shard)

    assert unplayed._core.params_version == 1
    assert next(answers, "all told") == "all told"
    # An answer is taken by the wait after the next question.
    assert [call.method for call in shard.calls] == ["await_params"] * 7
    # Twice as long after each: 0.4, 0.8, 1.6 and 3.2 s.
    assert ray.now_s - 1000.0 == pytest.approx(30 * FIRST_PARAMS_QUESTION_S)


def test_first_parameters_that_do_not_come_end_the_actor_with_the_reason(ray, shard, unplayed):
    with pytest.raises(WaitTimeoutError, match="actor 0 waited 60 s for the learner's first"):
        unplayed._await_first_params(shard)

    assert ray.now_s - 1000.0 >= FIRST_PARAMS_TIMEOUT_S
    assert 5 <= len(shard.calls) <= 12  # ever more seldom


def test_actor_that_is_stopped_does_not_wait_for_its_first_parameters(ray, shard, unplayed):
    ray.on_idle = unplayed.request_stop

    unplayed._await_first_params(shard)

    assert (len(shard.calls), unplayed._core.params_version) == (1, None)
