"""Roles of an asynchronous run that are killed: replaced, restarted, or the end with exit 5."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

from qfleet.run_files.summary import read_summary
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


@pytest.fixture
def kill(ray_started):
    """Kills the process of a role by its id, as the system would when memory runs out."""

    def named(role):
        names = [n for n in ray_started.util.list_named_actors() if n.partition("/")[2] == role]
        assert len(names) == 1, (role, names)
        return ray_started.get_actor(names[0])

    def kill_role(role):
        handle = named(role)
        if role.startswith("actor"):
            pid = ray_started.get(handle.ping.remote(), timeout=30)["pid"]
        else:
            pid = ray_started.get(handle.ready.remote(), timeout=30)
        os.kill(pid, signal.SIGKILL)

    return kill_role


class AtEvaluation:
    """Does something at the n-th evaluation and remembers all of them."""

    def __init__(self, number, action):
        self._number, self._action = number, action
        self.reports = []

    def __call__(self, report):
        self.reports.append(report)
        if len(self.reports) == self._number:
            self._action()


@pytest.mark.timeout(120)
def test_killed_actor_is_replaced_and_the_run_finishes(
    tmp_path, config, outcomes, ray_started, kill, capsys
):
    later = []

    def names():
        later.append(sorted(n.partition("/")[2] for n in ray_started.util.list_named_actors()))

    hook = AtEvaluation(1, lambda: kill("actor-0-0"))
    wanted = config(run__max_learner_steps=1600, replay__samples_per_insert=4.0)

    def on_evaluation(report):
        hook(report)
        names()

    summary = train(wanted, on_evaluation, run_dir=tmp_path / "run")
    out = capsys.readouterr().out
    assert (summary.status, summary.exit_code) == ("finished", 0)
    assert summary.learner_steps == 1600
    assert "actor 0 died" in out
    assert "actor 0 plays again (incarnation 1)" in out
    # With one actor and a ratio to keep, only the replacement can have fed the rest.
    assert "actor-0-1" in later[-1]
    assert "actor-0-0" not in later[-1]
    assert summary.accounting.is_balanced
    assert outcomes[0].outcome.role_restarts == 0
    assert all(b > a for a, b in itertools.pairwise(r.params_version for r in hook.reports))
    # The newcomer acted with the target that was in force, and with later ones.
    log = outcomes[0].outcome.target_syncs
    versions = [version for _, version in log["syncs"]]
    acted = log["acknowledged"][0]
    assert acted == sorted(set(acted) & set(versions))
    assert acted[-1] >= versions[len(versions) // 2]
    assert outcomes[0].session.report.slots[0].incarnation == 1


@pytest.mark.timeout(120)
def test_killed_learner_goes_on_from_the_last_cut(tmp_path, config, outcomes, kill, capsys):
    hook = AtEvaluation(2, lambda: kill("learner"))

    def until_it_goes_on(report):
        hook(report)
        return len(hook.reports) < 4

    # It ends when that was seen: a driver that does little but checkpoints evaluates seldom.
    wanted = config(run__checkpoint_period_s=0.1, run__max_learner_steps=1_000_000)
    summary = train(wanted, until_it_goes_on, run_dir=tmp_path / "run")
    out = capsys.readouterr().out
    assert (summary.status, summary.exit_code) == ("stopped", 0)
    assert outcomes[0].outcome.role_restarts == 1
    assert "all roles start again from learner step" in out
    assert summary.accounting.is_balanced
    # Versions never go back, although the learner did.
    assert all(b > a for a, b in itertools.pairwise(r.params_version for r in hook.reports))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["learner", "replay-0"])
def test_killed_role_without_restarts_left_ends_with_5(tmp_path, config, kill, capsys, role):
    hook = AtEvaluation(1, lambda: killed_at.append(time.monotonic()) or kill(role))
    killed_at = []
    wanted = config(run__max_role_restarts=0, run__max_learner_steps=100_000)
    wanted = wanted.model_copy(
        update={"run": wanted.run.model_copy(update={"checkpoint_period_s": 0.1})}
    )
    summary = train(wanted, hook, run_dir=tmp_path / "run")
    captured = capsys.readouterr()
    assert time.monotonic() - killed_at[0] < 30
    assert (summary.status, summary.exit_code) == ("failed", 5)
    assert "died" in summary.stop_reason
    assert "max_role_restarts = 0" in summary.stop_reason
    assert summary.resumable
    assert summary.stop_reason in captured.err
    assert captured.out.splitlines()[-1].strip().startswith("qfleet train --resume ")


@pytest.mark.timeout(120)
def test_killed_evaluator_is_replaced(tmp_path, config, outcomes, ray_started, capsys):
    def kill_evaluator():
        [name] = [n for n in ray_started.util.list_named_actors() if "/evaluator" in n]
        ray_started.kill(ray_started.get_actor(name), no_restart=True)

    hook = AtEvaluation(1, kill_evaluator)
    wanted = config(run__max_learner_steps=3000, replay__samples_per_insert=8.0)
    summary = train(wanted, hook, run_dir=tmp_path / "run")
    assert (summary.status, summary.exit_code, summary.learner_steps) == ("finished", 0, 3000)
    assert "a new one takes its place" in capsys.readouterr().out
    assert len(hook.reports) >= 2
    assert outcomes[0].outcome.role_restarts == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("schedule", ["async", "lockstep"])
def test_learner_that_cannot_start_ends_the_run_and_leaves_no_role(
    tmp_path, config, ray_started, schedule
):
    # The driver's trial goes well; the learner's machine is another one.
    (tmp_path / "bad_parts.py").write_text(
        "import os\nfrom torch import nn\n"
        "def make_network(n_inputs, n_actions):\n"
        f"    if os.getpid() != {os.getpid()}:\n"
        "        raise RuntimeError('no such layer')\n"
        "    return nn.Linear(n_inputs, n_actions)\n"
    )
    free = ray_started.available_resources()["CPU"]
    wanted = config(
        network__factory="bad_parts:make_network",
        run__schedule=schedule,
        run__max_role_restarts=1,
    )
    summary = train(wanted, run_dir=tmp_path / "run")
    assert (summary.status, summary.exit_code) == ("failed", 5)
    assert "no such layer" in summary.stop_reason
    assert ray_started.util.list_named_actors() == []
    deadline_s = time.monotonic() + 20
    while ray_started.available_resources().get("CPU", 0) < free:
        assert time.monotonic() < deadline_s, "the roles' CPUs were not given back"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("schedule", ["async", "lockstep"])
def test_signal_while_a_role_cannot_be_placed_ends_the_start(
    tmp_path, config, ray_started, schedule
):
    def interrupt():
        while not any("/learner" in name for name in ray_started.util.list_named_actors()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    wanted = config(learner__num_cpus=1000, run__schedule=schedule)
    summary = train(wanted, run_dir=tmp_path / "run")
    assert (summary.status, summary.stop_reason, summary.exit_code) == ("stopped", "SIGINT", 130)
    assert list(summary.phases_s) == ["imports", "ray", "roles", "shutdown", "artifacts"]
    assert read_summary(tmp_path / "run") == summary
    assert ray_started.util.list_named_actors() == []
