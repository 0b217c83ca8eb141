"""A private Ray's processes are apart from ours, and nothing of it outlives its driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from qfleet.cluster.private_ray.own_session import OWNER_FILE, mark, remove_orphans

pytest.importorskip("ray")
SOURCE = Path(__file__).resolve().parents[3] / "src"
pytestmark = pytest.mark.timeout(60)

DRIVER = """
    import os, subprocess, sys, time
    from pathlib import Path
    from ray._private import services
    from qfleet.cluster.private_ray.own_session import OwnSession, mark

    place = Path(sys.argv[1])
    own = OwnSession(place)
    with own.around_init():
        # A service that starts an agent, which does not notice its end.
        code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']);"
        code += "print(p.pid, flush=True); time.sleep(600)"
        service = services.ConsolePopen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    agent = int(service.stdout.readline())
    folder = place / f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    folder.mkdir()
    (folder / "gcs.out").write_text("log")
    mark(folder)
    print(service.pid, agent, os.getsid(service.pid), os.getsid(0), folder, flush=True)
    if sys.argv[2] == "end":
        service.kill()
        own.end()
    time.sleep(600)
"""


@pytest.fixture
def driver(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    place = tmp_path / "ray"
    place.mkdir()
    (place / "session_2025-01-01_00-00-00_000000_77").mkdir()  # somebody else's
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, str(script), str(place), how],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            start_new_session=True,
        )
        started.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_alive(pid):
    """Whether it runs; one that is dead may wait for whoever collects the dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(seconds, pids, folder):
    ends_s = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) or Path(folder).exists():
        assert time.monotonic() < ends_s, (pids, folder)
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["killed", "end"])
def test_nothing_is_left_when_the_driver_is_killed_or_ends_its_ray(driver, how, tmp_path):
    process, (service, agent, session, own_session, folder) = driver(how)
    service, agent = int(service), int(agent)
    if how == "killed":
        assert int(session) == service != int(own_session)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    gone_within(15, [agent], folder)
    assert len(list((tmp_path / "ray").iterdir())) == 1


def test_signal_to_the_drivers_group_does_not_reach_ray(driver):
    process, (service, agent, *_) = driver("killed")
    os.killpg(process.pid, signal.SIGCONT)  # whom this reaches, SIGTERM reaches
    groups = {os.getpgid(int(pid)) for pid in (service, agent)}
    assert process.pid not in groups


def test_remove_orphans_takes_only_marked_folders_of_dead_owners(tmp_path):
    folders = {}
    for name in ("mine", "dead", "reused", "unmarked", "damaged"):
        folders[name] = tmp_path / f"session_{name}"
        folders[name].mkdir()
    mark(folders["mine"])
    me = psutil.Process()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    (folders["dead"] / OWNER_FILE).write_text(json.dumps([ended.pid, 1.0]))
    # The number is in use again, by a process that began at another time.
    (folders["reused"] / OWNER_FILE).write_text(json.dumps([me.pid, me.create_time() - 500.0]))
    (folders["damaged"] / OWNER_FILE).write_text("{")
    assert remove_orphans(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "session_damaged",
        "session_mine",
        "session_unmarked",
    ]
