"""Each role of a real run, slowed down on purpose, is the one that the verdict names."""

from __future__ import annotations

import operator
import time

import pytest

from qfleet.actors import remote as actor_shell
from qfleet.learner import remote as learner_shell
from qfleet.replay_server import remote as replay_shell
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

SLOWED = {
    "acting": ("actor", "_core._exploration", "epsilons"),
    "environment": ("actor", "_core._env", "step"),
    "encoding": ("actor", "_core._recorder.windows", "push"),
    "replay": ("shard", "_core", "insert"),
    "sampling": ("shard", "_core", "sample"),
    "limiter": ("shard", "", ""),
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
            if not part:  # waits as the limiter does: counted, lock released
                for held in (self._inserting, self._sampling):
                    hold_first(held)
                return
            owner = operator.attrgetter(part)(self)
            quick = getattr(owner, method)

            def slow(*arguments, **options):
                time.sleep(delay_s)
                return quick(*arguments, **options)

            setattr(owner, method, slow)

    def hold_first(held):
        quick = held.let_through

        def slow(*arguments):
            quick(lambda: False, lambda: False, delay_s)
            held_s = quick(*arguments)
            return None if held_s is None else held_s + delay_s

        held.let_through = slow

    return Slowed


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", SLOWED)
def test_verdict_names_the_role_that_was_slowed(tmp_path, config, ray_started, monkeypatch, stage):
    role, part, method = SLOWED[stage]
    module, shell, maker = {
        "actor": (actor_shell, "ActorShell", "remote_actor_class"),
        "shard": (replay_shell, "ReplayServerShell", "remote_replay_class"),
        "learner": (learner_shell, "LearnerShell", "remote_learner_class"),
    }[role]
    # Per vector step, chunk, request or block: far above what any of them takes on a busy machine.
    delay_s = 0.03 if role == "actor" else 0.1
    slowed_shell = slowed_class(getattr(module, shell), part, method, delay_s)
    slowed = ray_started.remote(**module.RAY_OPTIONS)(slowed_shell)
    monkeypatch.setattr(module, maker, lambda: slowed)
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
