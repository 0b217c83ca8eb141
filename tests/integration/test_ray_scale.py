"""A live run with more and with fewer actors: no restart, no error, ε as the formula has it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from qfleet import training
from qfleet.command_line.cli import main
from qfleet.common.schedules import epsilon_ladder
from qfleet.session.session import Session

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

ENVS = 2
RESTS = "no actor writes to replay shard 1: it rests, the others are drawn from"
UPDATES_AFTERWARDS = 2_000
"""More than the limiter's window lets through."""


@pytest.fixture
def seen(monkeypatch):
    """As the session hears of them: updates, and each sub-environment's ε in its newest episode."""
    seen, observe = SimpleNamespace(learner_steps=0, epsilons={}), Session.observe

    def noting(session, report):
        for episode in report.episodes:
            seen.epsilons[episode.actor_slot, episode.sub_env] = episode.epsilon
        seen.learner_steps = report.learner.learner_steps
        observe(session, report)

    monkeypatch.setattr(Session, "observe", noting)
    return seen


def formula(actors):
    return pytest.approx(sorted(epsilon_ladder(actors * ENVS, 0.4, 7.0)), rel=1e-12)


def until(holds, timeout_s=60.0):
    """Whether it holds in time."""
    ends_s = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < ends_s:
        time.sleep(0.05)
    return holds()


def await_ladder(seen, actors):
    """Until what was played last is the ladder of so many actors, each at one place of it.

    Episodes of those that have left may still be told of.
    """

    def is_that_ladder():
        played = seen.epsilons.copy().items()
        return sorted(e for (slot, _), e in played if slot < actors) == formula(actors)

    return until(is_that_ladder)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("sizes", [(4, 1), pytest.param((8, 1), marks=pytest.mark.slow)])
def test_scaled_run_plays_the_ladder_of_every_size_and_loses_nothing(
    tmp_path, config, outcomes, seen, sizes
):
    run, found, codes = tmp_path / "run", {}, []

    def scale():
        found[2] = await_ladder(seen, 2)
        for size in sizes:
            codes.append(main(["scale", str(run), "--actors", str(size)]))
            seen.epsilons.clear()
            found[size] = await_ladder(seen, size)
        # The one that is left writes to shard 0: shard 1 must not hold the learner back.
        enough = seen.learner_steps + UPDATES_AFTERWARDS
        found["goes on"] = until(lambda: seen.learner_steps > enough)
        ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=scale)
    thread.start()
    summary = training.train(
        config(
            actors__count=2,
            replay__shards=2,
            actors__envs_per_actor=ENVS,
            replay__samples_per_insert=4.0,
            run__max_learner_steps=1_000_000,
            run__max_wall_s=120.0,
        ),
        lambda report: not ended.is_set(),
        run_dir=run,
    )
    thread.join()

    assert found == dict.fromkeys((2, *sizes, "goes on"), True)
    assert (codes, summary.status, summary.exit_code) == ([0, 0], "stopped", 0)
    assert (summary.role_restarts, summary.actors) == (0, 1)
    assert not [text for text in summary.incidents if "died" in text]
    assert RESTS in summary.incidents
    # Those that left had said all: every transition is somewhere, and none came after its end.
    assert summary.accounting.at_least == []
    assert summary.accounting.is_balanced
    assert summary.accounting.rejected == 0
    assert [row.slot for row in summary.slots] == list(range(sizes[0]))
