"""An environment that writes down every step: the books hold what was played, and that once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import ray

from qfleet import training
from qfleet.training import train

sys.path.insert(0, str(Path(__file__).parent))

import ledger as books

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


@pytest.fixture
def ledger(tmp_path, monkeypatch, config):
    """A configuration, and what was played: (stream, episode, step) of every step of an actor."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    (tmp_path / "ledger_env.py").write_text(books.ENVIRONMENT)
    monkeypatch.chdir(tmp_path)

    def make(**changes):
        return config(**books.settings(folder), **changes)

    def played():
        return books.played(folder, {os.getpid()})

    return make, played


@pytest.fixture
def kill(ray_started):
    """Kills the process of the role whose name begins like that."""

    def kill_role(role):
        # The newest incarnation of an actor's slot.
        names = [
            n
            for n in ray_started.util.list_named_actors()
            if n.partition("/")[2] == role or n.partition("/")[2].startswith(f"{role}-")
        ]
        handle = ray_started.get_actor(names[0])
        method = handle.ping if role.startswith("actor") else handle.ready
        answer = ray_started.get(method.remote(), timeout=30)
        os.kill(answer["pid"] if role.startswith("actor") else answer, signal.SIGKILL)

    return kill_role


@pytest.fixture
def session_of_run(monkeypatch):
    """The session of the run that is going on, once it has begun."""
    begun = []
    begin = training.run_session

    def noting(session, outcome):
        begun.append(session)
        begin(session, outcome)

    monkeypatch.setattr(training, "run_session", noting)
    return begun


class Killer(threading.Thread):
    """Kills one role after the other, each so many reports after the run's newest checkpoint.

    The second checkpoint after the last of them (the first may be of before) ends the run, as
    SIGTERM to it does.
    """

    def __init__(self, kill, roles, run, session_of_run, reports):
        super().__init__()
        self.kill, self.roles, self.run_dir, self.reports = kill, roles, run, reports
        self.session_of_run = session_of_run
        self.ended = threading.Event()
        self.killed, self.seen = [], set()

    def __enter__(self):
        self.start()
        return self.killed

    def __exit__(self, *_):
        self.ended.set()
        self.join()

    def another_checkpoint(self):
        while not self.ended.wait(0.1):
            new = {path.name for path in self.run_dir.glob("checkpoints/ckpt-*")} - self.seen
            if new:
                self.seen |= new
                return True
        return False

    def more_is_reported(self):
        for _ in range(self.reports):
            [session] = self.session_of_run
            before = session.report.env_steps
            while session.report.env_steps <= before and not self.ended.wait(0.02):
                pass

    def run(self):
        for count, role in enumerate(self.roles, 1):
            while len(self.killed) < count:
                if not self.another_checkpoint():
                    return
                self.more_is_reported()
                with contextlib.suppress(IndexError, ValueError, ray.exceptions.RayError):
                    self.kill(role)  # an attempt while it is being replaced is made again
                    self.killed.append(role)
        if self.another_checkpoint() and self.another_checkpoint():
            os.kill(os.getpid(), signal.SIGTERM)


def check_books(summary, run, played):
    """What the books say against what the ledger says; what only `at least` covers."""
    assert summary.accounting.evicted == 0
    wrong, unknown = books.unaccounted(summary.accounting.model_dump(), run, played)
    assert wrong == 0
    return unknown


@pytest.mark.timeout(120)
def test_books_of_an_undisturbed_run_are_the_ledger(tmp_path, ledger):
    make, played = ledger

    summary = train(make(actors__count=2, run__max_learner_steps=400), run_dir=tmp_path / "run")

    assert (summary.status, summary.accounting.at_least) == ("finished", [])
    assert check_books(summary, tmp_path / "run", played()) == 0
    assert summary.accounting.lost == 0


def longest_gap_s(run):
    """Between two rows of metrics in which the learner had got further."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    moments = {row["learner_steps"]: row["wall_s"] for row in reversed(rows)}
    times = [moments[step] for step in sorted(moments)]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("roles", "period_s", "reports", "least_lost", "ended_actors"),
    [
        (["actor-0", "actor-1"] * 3, 1.0, 0, 0, 6),
        # What is restored is killed when something is known to be lost with it.
        (["learner"], 3.0, 2, 1, 2),
        (["replay-0", "replay-1"], 3.0, 2, 1, 0),
    ],
)
def test_books_after_kills_are_the_ledger_but_for_what_is_said_as_at_least(
    tmp_path, ledger, kill, session_of_run, roles, period_s, reports, least_lost, ended_actors
):
    make, played = ledger
    wanted = make(
        actors__count=2,
        replay__shards=2,
        run__max_learner_steps=1_000_000,
        run__max_wall_s=120.0,
        run__checkpoint_period_s=period_s,
    )

    with Killer(kill, roles, tmp_path / "run", session_of_run, reports) as killed:
        summary = train(wanted, run_dir=tmp_path / "run")

    assert killed == roles
    assert (summary.status, summary.exit_code) == ("stopped", 143)
    assert summary.accounting.lost >= least_lost
    unaccounted = check_books(summary, tmp_path / "run", played())
    if ended_actors:
        assert summary.accounting.at_least == ["produced", "lost"]
        # What was played between each actor's last word and its end.
        assert unaccounted <= 1000 * ended_actors
    else:  # the shards alone: every actor told to the end, and what they had taken is counted
        assert (summary.accounting.at_least, summary.role_restarts) == ([], 0)
        assert longest_gap_s(tmp_path / "run") <= 10.0
