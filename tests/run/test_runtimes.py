"""Incarnations over processes and attempts, and what is said before roles are started."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

from qfleet.cluster import cluster_pulse, ray_cluster
from qfleet.run import runtimes
from qfleet.run.outcome import Outcome
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config


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
