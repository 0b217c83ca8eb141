"""Environments that fail while a run is on Ray: in the user's own words, and the run ends."""

from __future__ import annotations

import time

import pytest

from qfleet.training import run_train, train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

FAILING_ENV = """
import sys
import gymnasium


class Failing(gymnasium.Wrapper):
    steps = 0
    held = []

    def step(self, action):
        self.steps += 1
        if self.kind == "leaks":
            self.held.append(bytearray(2_000_000))
        if self.steps > self.good_steps:
            return self.fault()
        answer = self.env.step(action)
        if self.one_step_episodes:
            return answer[0], 1.0, True, False, {}
        return answer

    def fault(self):
        if self.kind == "exits":
            sys.exit(3)
        raise KeyError("price_table")


def make(kind, good_steps=30, one_step_episodes=False, render_mode=None):
    env = Failing(gymnasium.make("Acrobot-v1", render_mode=render_mode))
    env.kind, env.good_steps, env.one_step_episodes = kind, good_steps, one_step_episodes
    return env
"""
WORDS = {
    "raises": "step raised KeyError: 'price_table' ({path}, line 24, in fault); the error is the "
    "environment's own",
    "exits": "step called sys.exit(3); an environment must not end its process",
}


@pytest.fixture
def failing(tmp_path, monkeypatch, config):
    """A configuration whose environment fails after 30 steps, in the given way."""
    (tmp_path / "failing_env.py").write_text(FAILING_ENV)
    monkeypatch.chdir(tmp_path)

    def make(kind, schedule, **kwargs):
        return config(
            env__factory="failing_env:make",
            env__kwargs={"kind": kind, **kwargs},
            run__schedule=schedule,
            eval__solved_at_return=None,
            run__max_learner_steps=100_000,
        )

    return make


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "schedule"), [("raises", "async"), ("exits", "async"), ("raises", "lockstep")]
)
def test_failing_environment_ends_the_run_with_5_and_its_own_words(
    tmp_path, failing, capsys, kind, schedule
):
    words = WORDS[kind].format(path=tmp_path / "failing_env.py")
    started_s = time.monotonic()

    summary = train(failing(kind, schedule), run_dir=tmp_path / "run")

    assert time.monotonic() - started_s < 60
    assert (summary.status, summary.exit_code) == ("failed", 5)
    assert "failed in actor 0, sub-environment 0 at step 31 of episode 1: " in summary.stop_reason
    assert words in summary.stop_reason
    captured = capsys.readouterr()
    assert words in captured.err
    assert "bug in qfleet" not in captured.err
    texts = sorted((tmp_path / "run" / "errors").iterdir())
    assert any("failing_env.py" in text.read_text() for text in texts)
    assert "Traceback" in texts[-1].read_text()
    if schedule == "async":
        # The first time a new actor tries again; the incident names the cause and where it stands.
        assert "failed twice without ending an episode in between" in summary.stop_reason
        first = next(text for text in summary.incidents if "actor 0 died" in text)
        assert words in first
        assert str(texts[0]) in first


@pytest.mark.timeout(120)
def test_environment_that_ends_episodes_before_it_fails_is_tried_again_and_again(
    tmp_path, failing, capsys
):
    wanted = failing("raises", "async", good_steps=400, one_step_episodes=True)
    wanted = wanted.model_copy(
        update={
            "run": wanted.run.model_copy(update={"max_learner_steps": 600}),
            "replay": wanted.replay.model_copy(update={"samples_per_insert": 4.0}),
        }
    )

    summary = train(wanted, run_dir=tmp_path / "run")

    deaths = [text for text in summary.incidents if "actor 0 died" in text]
    assert (summary.status, summary.exit_code) == ("finished", 0)
    assert len(deaths) > 1


@pytest.mark.timeout(60)
def test_failing_trial_starts_nothing_on_ray(tmp_path, failing):
    from qfleet.common.errors import ConfigError

    with pytest.raises(ConfigError, match="failed in the trial before the start at step 4 of"):
        run_train(failing("raises", "async", good_steps=3), run_dir=str(tmp_path / "run"))

    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(120)
def test_actor_whose_environment_leaks_is_replaced_at_the_limit(tmp_path, failing, capsys):
    """2 MB a step: each incarnation plays some 200 steps, and what it played is not lost."""
    wanted = failing("leaks", "async", good_steps=10**9)
    wanted = wanted.model_copy(
        update={
            "run": wanted.run.model_copy(update={"max_learner_steps": 600}),
            "actors": wanted.actors.model_copy(update={"max_memory_gb": 0.6}),
            "replay": wanted.replay.model_copy(update={"samples_per_insert": 8.0}),
            "eval": wanted.eval.model_copy(update={"max_episode_steps": 20}),
        }
    )

    summary = train(wanted, run_dir=tmp_path / "run")

    assert (summary.status, summary.exit_code) == ("finished", 0)
    told = [text for text in summary.incidents if text.startswith("actor 0 died (its process held")]
    assert len(told) == 1
    again = [text for text in summary.incidents if "actor 0 plays again" in text]
    assert len(again) >= 2
    assert summary.accounting.lost == 0


@pytest.mark.timeout(60)
def test_memory_limit_without_room_for_a_step_ends_the_run(tmp_path, failing):
    wanted = failing("leaks", "async", good_steps=10**9)
    wanted = wanted.model_copy(
        update={"actors": wanted.actors.model_copy(update={"max_memory_gb": 0.01})}
    )

    summary = train(wanted, run_dir=tmp_path / "run")

    assert (summary.status, summary.exit_code) == ("failed", 5)
    assert "more than actors.max_memory_gb = 0.01 allows: raise it" in summary.stop_reason
