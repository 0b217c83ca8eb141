"""A live run with more and with fewer actors: no restart, no error, ε as the formula has it."""

from __future__ import annotations

import threading
import time

import pytest

from qfleet import training
from qfleet.command_line.cli import main
from qfleet.common.schedules import epsilon_ladder
from qfleet.session.session import Session

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

ENVS = 2


@pytest.fixture
def seen(monkeypatch):
    """The newest ε of each sub-environment that an episode ended in, as the session hears of it."""
    newest, observe = {}, Session.observe

    def noting(session, report):
        for episode in report.episodes:
            newest[episode.actor_slot, episode.sub_env] = episode.epsilon
        observe(session, report)

    monkeypatch.setattr(Session, "observe", noting)
    return newest


def formula(actors):
    return pytest.approx(sorted(epsilon_ladder(actors * ENVS, 0.4, 7.0)), rel=1e-12)


def await_ladder(seen, actors, timeout_s=60.0):
    """Until what was played last is the ladder of so many actors, each at one place of it.

    Episodes of those that have left may still be told of.
    """
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        if sorted(e for (slot, _), e in seen.copy().items() if slot < actors) == formula(actors):
            return True
        time.sleep(0.05)
    return False


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
            seen.clear()
            found[size] = await_ladder(seen, size)
        ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=scale)
    thread.start()
    summary = training.train(
        config(
            actors__count=2,
            actors__envs_per_actor=ENVS,
            replay__samples_per_insert=4.0,
            run__max_learner_steps=1_000_000,
            run__max_wall_s=120.0,
        ),
        lambda report: not ended.is_set(),
        run_dir=run,
    )
    thread.join()

    assert found == dict.fromkeys((2, *sizes), True)
    assert (codes, summary.status, summary.exit_code) == ([0, 0], "stopped", 0)
    assert (summary.role_restarts, summary.actors) == (0, 1)
    assert not [text for text in summary.incidents if "died" in text]
    # Those that left had said all: every transition is somewhere, and none came after its end.
    assert summary.accounting.at_least == []
    assert summary.accounting.is_balanced
    assert summary.accounting.rejected == 0
    assert [row.slot for row in summary.slots] == list(range(sizes[0]))
