"""Each role of a real run, slowed down on purpose, is the one that the verdict names."""

from __future__ import annotations

import operator
import time

import pytest

from qfleet.actors.remote import ActorShell
from qfleet.learner.remote import CONCURRENCY_GROUPS, LearnerShell
from qfleet.replay_server.remote import ReplayServerShell
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

SLOWED = {
    "acting": ("actor", "_core._exploration", "epsilons"),
    "environment": ("actor", "_core._env", "step"),
    "encoding": ("actor", "_core._recorder.windows", "push"),
    "replay": ("shard", "_core", "insert"),
    "sampling": ("shard", "_core", "sample"),
    "limiter": ("shard", "", "_hold_back"),
    "copying": ("learner", "_planner", "assemble"),
    "learning": ("learner", "_core", "update_block"),
}
"""Stage: the role, the part of its shell and the method that is slowed."""


def slowed_class(shell, part, method, delay_s):
    """A subclass of `shell` whose method of `part` takes `delay_s` longer.

    Defined in here so that its code travels to the workers.
    """

    class Slowed(shell):
        def __init__(self, *args):
            super().__init__(*args)
            owner = operator.attrgetter(part)(self) if part else self
            quick = getattr(owner, method)

            def slow(*arguments):
                if method == "_hold_back":  # waits as the limiter does: counted, lock released
                    self._changed.wait_for(lambda: False, delay_s)
                    arguments[0].held_s += delay_s
                else:
                    time.sleep(delay_s)
                return quick(*arguments)

            setattr(owner, method, slow)

    return Slowed


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", SLOWED)
def test_verdict_names_the_role_that_was_slowed(tmp_path, config, ray_started, monkeypatch, stage):
    role, part, method = SLOWED[stage]
    shell, module = {
        "actor": (ActorShell, "qfleet.actors.remote.remote_actor_class"),
        "shard": (ReplayServerShell, "qfleet.replay_server.remote.remote_replay_class"),
        "learner": (LearnerShell, "qfleet.learner.remote.remote_learner_class"),
    }[role]
    groups = {"insert": 1, "sample": 1, **CONCURRENCY_GROUPS}
    # Per vector step, chunk, request or block: far above what any of them takes on a busy machine.
    delay_s = 0.03 if role == "actor" else 0.1
    slowed_shell = slowed_class(shell, part, method, delay_s)
    slowed = ray_started.remote(concurrency_groups=groups)(slowed_shell)
    monkeypatch.setattr(module, lambda: slowed)
    summary = train(
        config(
            eval__period_learner_steps=1_000_000,
            learner__updates_per_call=10,
            run__max_learner_steps=300,
        ),
        run_dir=tmp_path / "run",
    )
    assert summary.exit_code == 0
    assert summary.limited_by == stage
