"""Restarts after a lost role: from the last cut, a bounded number of times without progress."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.common.errors import ClusterLostError, NonFiniteError, RoleLostError, WaitTimeoutError
from qfleet.run import restarts
from qfleet.run.outcome import Outcome
from qfleet.session.transition_accounts import TransitionAccounts
from qfleet.settings.config import Config, RunConfig


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
        monkeypatch.setattr(restarts, "find_point", lambda directory: point)
        self.outcome = Outcome(0.0)

    def run_once(self, session, outcome):
        self.attempts += 1
        if self.deaths:
            session.learner_steps, error = self.deaths.pop(0)
            raise error

    def run(self):
        restarts.with_restarts(self.session, self.outcome, self.run_once, self.settle)

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
