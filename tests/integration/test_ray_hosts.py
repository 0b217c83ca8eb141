"""A run that grows with a host that joins, outlives the loss of it, and takes it back."""

from __future__ import annotations

import os
import signal
import threading
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


@pytest.fixture
def playing(monkeypatch):
    """How many actors the session has last heard of."""
    heard, observe = [0], Session.observe

    def noting(session, report):
        heard[0] = len(report.actors)
        observe(session, report)

    monkeypatch.setattr(Session, "observe", noting)
    return heard


@pytest.mark.timeout(280)
def test_run_grows_with_a_host_outlives_its_loss_and_takes_it_back(
    tmp_path, config, hosts, playing, capsys
):
    took_s, ended = {}, threading.Event()

    def until(n, what):
        began_s = time.monotonic()
        while playing[0] != n:
            assert time.monotonic() - began_s < 100.0, f"{playing[0]} actors play: {what}"
            time.sleep(0.05)
        took_s[what] = time.monotonic() - began_s

    def go():
        try:
            until(1, "begun with one")
            host = hosts()
            until(4, "grown")
            os.kill(host.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            until(1, "lost")
            hosts()
            until(4, "taken back")
        finally:
            ended.set()

    thread = threading.Thread(target=go)
    thread.start()
    summary = train(
        config(
            actors__count=4,
            ray__actor_resources={"player": 1},
            run__max_learner_steps=10_000_000,
            run__max_wall_s=240.0,
        ),
        lambda report: not ended.is_set(),
        run_dir=tmp_path / "run",
    )
    thread.join()
    print(f"seconds: {took_s}")

    assert list(took_s) == ["begun with one", "grown", "lost", "taken back"]
    assert took_s["lost"] <= 10.0
    assert took_s["taken back"] <= 30.0
    assert (summary.status, summary.exit_code, summary.role_restarts) == ("stopped", 0, 0)
    assert summary.accounting.is_balanced
    said = "\n".join(summary.incidents)
    assert "3 of 4 actors wait for room: each wanted CPU 0.5, player 1, free " in said
    assert "actor 1 plays again" in said
    logs = {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert {"learner.log", "replay-0.log", "actor-0-0.log", "actor-1-0.log"} <= logs
