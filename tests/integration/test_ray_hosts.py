"""A run that grows with a host that joins, outlives the loss of it, and takes it back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from qfleet.session.session import Session
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MIB = 2**20


@pytest.fixture
def hosts():
    """A cluster of one host with room for one actor; `add` brings one with room for three more."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "resources": {"player": 1}, "object_store_memory": 100 * MIB}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    ray.init(address=cluster.address, namespace="qfleet", log_to_driver=False)

    def add():
        player = {"num_cpus": 2, "resources": {"player": 3}, "object_store_memory": 100 * MIB}
        return cluster.add_node(**player)

    yield add
    ray.shutdown()
    cluster.shutdown()


class Course:
    """What is done as soon as so many actors play, one thing after the other, by the main thread.

    Ray starts a host in the main thread only.
    """

    def __init__(self, steps):
        self.steps, self.took_s = steps, {}
        self.since_s = time.monotonic()

    @property
    def is_over(self):
        return not self.steps

    def look(self, n_actors):
        if self.is_over or n_actors != self.steps[0][0]:
            return
        _, what, action = self.steps.pop(0)
        self.took_s[what] = time.monotonic() - self.since_s
        action()
        self.since_s = time.monotonic()


@pytest.mark.timeout(280)
def test_run_grows_with_a_host_outlives_its_loss_and_takes_it_back(
    tmp_path, config, hosts, monkeypatch
):
    added, observe = [], Session.observe

    def kill_raylet():
        os.kill(added[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)

    course = Course(
        [
            (1, "begun with one", lambda: added.append(hosts())),
            (4, "grown", kill_raylet),
            (1, "lost", lambda: added.append(hosts())),
            (4, "taken back", lambda: None),
        ]
    )

    def noting(session, report):
        observe(session, report)
        course.look(len(report.actors))

    monkeypatch.setattr(Session, "observe", noting)
    summary = train(
        config(
            actors__count=4,
            ray__actor_resources={"player": 1},
            run__max_learner_steps=10_000_000,
            run__max_wall_s=200.0,
        ),
        lambda report: not course.is_over,
        run_dir=tmp_path / "run",
    )
    print(f"seconds: {course.took_s}; {summary.incidents}")

    assert list(course.took_s) == ["begun with one", "grown", "lost", "taken back"]
    assert course.took_s["lost"] <= 10.0
    assert course.took_s["taken back"] <= 30.0
    assert (summary.status, summary.exit_code, summary.role_restarts) == ("stopped", 0, 0)
    assert summary.accounting.is_balanced
    said = "\n".join(summary.incidents)
    assert "3 of 4 actors wait for room: each wanted CPU 0.5, player 1, free " in said
    assert "actor 1 plays again" in said
    logs = {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert {"learner.log", "replay-0.log", "actor-0-0.log", "actor-1-0.log"} <= logs
