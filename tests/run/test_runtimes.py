"""Restarts after a lost role: from the last cut, a bounded number of times without progress."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from qfleet.cluster import cluster_pulse, ray_cluster
from qfleet.common.errors import ClusterLostError, NonFiniteError, RoleLostError, WaitTimeoutError
from qfleet.run import runtimes
from qfleet.run.outcome import Outcome
from qfleet.session.transition_accounts import TransitionAccounts
from qfleet.settings.config import Config, RunConfig
from qfleet.settings.config_auto import resolve_config


class Rehearsal:
    """A run that dies at the given learner steps, one after the other, and then succeeds."""

    def __init__(self, monkeypatch, deaths, max_role_restarts=3, checkpoint_step=None):
        self.deaths, self.attempts = list(deaths), 0
        self.incidents = []
        self.session = SimpleNamespace(
            config=Config(run=RunConfig(max_role_restarts=max_role_restarts)),
            learner_steps=0,
            counters=SimpleNamespace(accounts=TransitionAccounts()),
            stop=SimpleNamespace(name=None),
            directory=None,
            incident=self.incidents.append,
        )
        point = None
        if checkpoint_step is not None:
            point = SimpleNamespace(checkpoint=SimpleNamespace(learner_step=checkpoint_step))
        monkeypatch.setattr(runtimes, "find_point", lambda directory: point)
        self.outcome = Outcome(0.0)

    def run_once(self, session, outcome):
        self.attempts += 1
        if self.deaths:
            session.learner_steps, error = self.deaths.pop(0)
            raise error

    def run(self):
        runtimes.with_restarts(self.session, self.outcome, self.run_once, self.settle)

    def settle(self):
        """The cluster is there, unless a test says otherwise."""


def lost(step):
    return step, RoleLostError("the learner died")


def test_with_restarts_without_a_loss_runs_once(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [])
    rehearsal.run()
    assert (rehearsal.attempts, rehearsal.outcome.role_restarts) == (1, 0)


def test_with_restarts_goes_on_from_the_last_cut_and_says_so(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [lost(700)], checkpoint_step=600)
    rehearsal.run()
    assert (rehearsal.attempts, rehearsal.outcome.role_restarts) == (2, 1)
    assert rehearsal.outcome.point.checkpoint.learner_step == 600
    [text] = rehearsal.incidents
    assert "the learner died" in text
    assert "from learner step 600" in text
    # Nobody could ask the actors that were ended how much they had played.
    assert rehearsal.session.counters.accounts.capture()["is_complete"] is False


def test_with_restarts_before_the_first_cut_begins_anew(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [(10, WaitTimeoutError("no answer"))])
    rehearsal.run()
    assert rehearsal.outcome.point is None
    assert "from the beginning" in rehearsal.incidents[0]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_with_restarts_in_vain_ends_after_the_limit(monkeypatch, limit):
    rehearsal = Rehearsal(monkeypatch, [lost(700)] * 20, limit)
    with pytest.raises(RoleLostError, match=rf"died.*max_role_restarts = {limit}"):
        rehearsal.run()
    assert rehearsal.attempts == limit + 1


def test_with_restarts_that_get_further_each_time_never_end(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [lost(100 * n) for n in range(1, 40)], 1)
    rehearsal.run()
    assert rehearsal.outcome.role_restarts == 39


def test_with_restarts_after_a_signal_does_not_restart(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [lost(700)])
    rehearsal.session.stop.name = "SIGTERM"
    with pytest.raises(RoleLostError):
        rehearsal.run()
    assert rehearsal.attempts == 1


def test_with_restarts_of_a_divergence_does_not_restart(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [(700, NonFiniteError("diverged"))])
    with pytest.raises(NonFiniteError):
        rehearsal.run()
    assert rehearsal.attempts == 1


def test_with_restarts_in_a_cluster_that_is_gone_ends_at_once(monkeypatch):
    rehearsal = Rehearsal(monkeypatch, [lost(700)] * 3)
    gone = ClusterLostError("its GCS has accepted no connection")

    def settle():
        raise gone

    rehearsal.settle = settle
    with pytest.raises(ClusterLostError) as raised:
        rehearsal.run()
    assert raised.value is gone
    assert (rehearsal.attempts, rehearsal.incidents) == (1, [])
    rehearsal = Rehearsal(monkeypatch, [(700, gone)] * 3)
    with pytest.raises(ClusterLostError):
        rehearsal.run()
    assert rehearsal.attempts == 1


def session_of(schedule: str, process: int) -> SimpleNamespace:
    return SimpleNamespace(process=process, config=SimpleNamespace(effective_schedule=schedule))


def test_incarnations_grow_over_processes_and_restarts():
    given = []
    for process in (0, 1, 2):
        session = session_of("async", process)
        for restarts in (0, 1, 5):
            outcome = Outcome(0.0, role_restarts=restarts)
            given.append(runtimes._incarnation(session, outcome))
    assert given[0] == 0
    assert given == sorted(set(given))
    assert min(b - a for a, b in itertools.pairwise(given)) >= 1024


def test_lockstep_from_the_beginning_has_the_same_incarnation_in_every_process_and_attempt():
    for process, restarts in ((0, 0), (0, 2), (3, 0), (3, 1)):
        outcome = Outcome(0.0, role_restarts=restarts)
        assert runtimes._incarnation(session_of("lockstep", process), outcome) == 0
    resumed = Outcome(0.0, point=object())
    assert runtimes._incarnation(session_of("lockstep", 3), resumed) == 3 * 65536


def test_restart_before_the_first_cut_begins_with_the_other_runs_parameters_again():
    fleet, session = MagicMock(), MagicMock()
    session.stop_reason.return_value = "max_learner_steps"
    session.directory.best_path.is_dir.return_value = False
    outcome = Outcome(0.0, None, {"weight": "of another run"})
    outcome.role_restarts = 1

    runtimes._run_lockstep(session, fleet, outcome)

    session.rolled_back.assert_called_once_with(fleet.report())
    fleet.init_params.assert_called_once_with({"weight": "of another run"})


def test_run_on_ray_says_what_lets_others_in(monkeypatch):
    said = []
    session = SimpleNamespace(
        config=resolve_config(Config(), None, cpus=2, gpus=0),
        stop=SimpleNamespace(
            interrupting=nullcontext, listen=lambda: None, end_wait=lambda began_s: None
        ),
        console=SimpleNamespace(message=said.append),
        incident=said.append,
    )
    for name in ("import_ray", "connect", "disconnect"):
        monkeypatch.setattr(ray_cluster, name, lambda *_: SimpleNamespace(own="ours"))
    monkeypatch.setattr(cluster_pulse, "services_of", lambda ray: [])
    monkeypatch.setattr(runtimes, "import_in_background", lambda *_: None)
    monkeypatch.setattr(runtimes, "with_restarts", lambda *_: said.append("roles"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    runtimes._run_on_ray(session, Outcome(time.monotonic()))

    assert len(said) == 2
    assert said[0].startswith("Ray runs without authentication (RAY_AUTH_MODE=disabled)")
    assert said[1] == "roles"  # said before anything of the run is started
