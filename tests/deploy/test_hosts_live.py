"""A run over three hosts (namespaces) that is scaled, loses a shard, and loses a host for a while.

`make hosts-test`; needs root. Each prints what it took.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import ROOT, Host
from page_cluster import line_of, summary

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
ENDLESS = "--eval.stop_when_solved false --run.max_learner_steps 1000000000"
NODES = """
import ray, time
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
before = set()
while True:
    alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if alive != before:
        print(time.time(), *sorted(alive), flush=True)
    before = alive
    time.sleep(0.2)
"""


class LiveRun:
    """A run that goes on, from outside."""

    def __init__(self, head: Host, command: str, folder: Path) -> None:
        self.process, self.output = head.start(command)
        self.head, self.folder = head, folder

    def until(self, what: str, look: Callable[[], Any], timeout_s: float = 90.0) -> Any:
        """The first true answer."""
        ends_s = time.monotonic() + timeout_s
        while not (found := look()):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < ends_s, f"{what}\n{self.output.read_text()}"
            time.sleep(0.1)
        return found

    def says(self, words: str) -> bool:
        """Whether it has said so."""
        return re.search(words, self.output.read_text()) is not None

    def rows(self) -> list[dict[str, Any]]:
        """Of its metrics."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def learner_steps(self) -> int:
        """As far as it has got."""
        return max((row["learner_steps"] for row in self.rows()), default=0)

    def roles(self) -> dict[str, dict[str, Any]]:
        """Every role that is there, as `qfleet status` has it."""
        script = "import sys, qfleet.command_line.cli as cli; sys.exit(cli.main())"
        done = subprocess.run(
            [sys.executable, "-c", script, "status", str(self.folder), "--json"],
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return {row["role"]: row for row in json.loads(done.stdout)["roles"] if row["host"]}

    def actors(self) -> dict[str, str]:
        """Host by actor that plays."""
        roles = self.roles().items()
        return {name: row["host"] for name, row in roles if name.startswith("actor-")}

    def stop(self) -> dict[str, Any]:
        """SIGTERM, and its summary."""
        # Of the run itself, which has its number from its host.
        pid = json.loads((self.folder / ".lock").read_text())["pid"]
        self.head.run(f"kill -TERM {pid}")
        self.process.wait(60)
        return summary(self.folder)


@contextmanager
def live_run(head: Host, folder: Path, flags: str) -> Iterator[LiveRun]:
    """`qfleet train` on the head without end, learning."""
    command = f"qfleet train --ray.address auto --run-dir {folder} {ENDLESS} {flags}"
    run = LiveRun(head, f"env PYTHONUNBUFFERED=1 {command}", folder)
    try:
        run.until("its first updates", lambda: run.learner_steps() > 1000)
        yield run
    finally:
        if run.process.poll() is None:
            run.stop()


def test_live_run_is_scaled_2_8_1(cluster: list[Host], tmp_path: Path) -> None:
    with live_run(cluster[0], tmp_path / "run", "--actors.count 2 --replay.shards 2") as run:
        took_s = {}
        for size in (8, 1):
            began_s = time.monotonic()
            code, said = cluster[0].run(f"qfleet scale {run.folder} --actors {size}", 30)
            assert code == 0, said
            run.until(f"{size} actors", lambda size=size: len(run.actors()) == size)
            took_s[size] = round(time.monotonic() - began_s, 1)
            before = run.learner_steps()
            run.until("updates", lambda before=before: run.learner_steps() > before + 5000)
        found = run.stop()
    print(f"seconds: {took_s}")
    assert (found["status"], found["role_restarts"], found["actors"]) == ("stopped", 0, 1)
    assert not [text for text in found["incidents"] if "died" in text]
    assert found["accounting"]["lost"] == found["accounting"]["rejected"] == 0


def test_one_of_two_shards_dies_and_learning_goes_on(cluster: list[Host], tmp_path: Path) -> None:
    flags = "--actors.count 4 --replay.shards 2 --run.checkpoint_period_s 5"
    by_name = {host.name: host for host in cluster}
    with live_run(cluster[0], tmp_path / "run", flags) as run:
        run.until("a checkpoint", lambda: list(run.folder.glob("checkpoints/ckpt-*")))
        shard = run.until("the shard's place", lambda: run.roles().get("replay-1"))
        by_name[shard["host"]].run(f"kill -9 {shard['pid']}")
        run.until("its return", lambda: run.says("replay shard 1 is there again"), 60)
        before = run.learner_steps()
        run.until("updates", lambda: run.learner_steps() > before + 5000)
        found = run.stop()
        moments = {row["learner_steps"]: row["wall_s"] for row in reversed(run.rows())}
    times = [moments[step] for step in sorted(moments)]
    gap_s = max(later - earlier for earlier, later in itertools.pairwise(times))
    print(f"longest gap in updates: {gap_s:.1f} s; lost {found['accounting']['lost']}")
    assert gap_s <= 10.0
    assert (found["status"], found["role_restarts"]) == ("stopped", 0)
    assert found["accounting"]["at_least"] == []


def test_host_that_nobody_reaches_is_replaced_and_taken_back(
    cluster: list[Host], tmp_path: Path
) -> None:
    """Eight actors fill six CPUs; without one of the hosts there is room for some of them only."""
    head, *others = cluster
    with live_run(head, tmp_path / "run", "--actors.count 8 --replay.shards 2") as run:
        run.until("eight actors", lambda: len(run.actors()) == 8)
        learner, places = run.roles()["learner"]["host"], run.actors()
        lost = next(h for h in others if h.name != learner and h.name in places.values())
        theirs = sum(host == lost.name for host in places.values())
        watch, seen = head.start(f"{sys.executable} -c '{NODES}'")
        run.until("Ray's own view", lambda: seen.read_text())

        cut_s = time.time()
        lost.unplug()
        run.until("the heartbeat", lambda: run.says("has accepted no connection"), 30)
        heartbeat_s = time.time() - cut_s
        room = run.until("what has room to play", lambda: room_of(run, lost, 8 - theirs), 60)
        replaced_s = time.time() - cut_s
        run.until("Ray to see it", lambda: lost.address not in seen.read_text().splitlines()[-1])
        ray_s = float(seen.read_text().splitlines()[-1].split()[0]) - cut_s
        before = run.learner_steps()
        run.until("updates without it", lambda: run.learner_steps() > before + 5000)

        back_s = time.time()
        lost.plug_in()
        # Its raylet was given up and ends; what looks after services starts it again.
        run.until("its raylet's end", lambda: "raylet" not in lost.run("ps -eo comm")[1], 60)
        lost.start(line_of("ray start --address=head:6379"))
        run.until("eight actors again", lambda: len(run.actors()) == 8)
        taken_back_s = time.time() - back_s
        watch.kill()
        found = run.stop()
    print(
        f"heartbeat {heartbeat_s:.1f} s, {room} of 8 play after {replaced_s:.1f} s, Ray sees it "
        f"after {ray_s:.1f} s, all 8 play {taken_back_s:.1f} s after the cable is back"
    )
    assert heartbeat_s <= 10.0
    assert replaced_s <= ray_s + 30.0
    assert (found["status"], found["role_restarts"]) == ("stopped", 0)


def room_of(run: LiveRun, lost: Host, left: int) -> int:
    """How many actors play elsewhere, once those that have room do."""
    places = run.actors()
    others = [host for host in places.values() if host != lost.name]
    has_room = len(others) == len(places) and len(others) >= left
    return len(others) if has_room and run.says("actors wait for room") else 0


def test_host_with_another_version_is_a_table(cluster: list[Host], tmp_path: Path) -> None:
    odd = cluster[2]
    metadata = tmp_path / "odd" / "qfleet-9.9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: qfleet\nVersion: 9.9.9\n")
    odd.run("ray stop --force")
    start = line_of("ray start --address=head:6379") + " --resources='{\"odd\": 9}'"
    odd.start(start, PYTHONPATH=f"{tmp_path}/odd:{ROOT / 'src'}")
    pinned = "--ray.actor_resources '{odd: 1}' --run-dir /dev/shm/odd"
    began_s = time.monotonic()

    code, said = cluster[0].run(f"qfleet train --ray.address auto {pinned}", 90)

    print(f"{time.monotonic() - began_s:.1f} s")
    assert code == 2, said
    assert re.search(r"actor-0\S* +host3 +\S+ +9\.9\.9", said), said
    assert time.monotonic() - began_s < 30.0
    shutil.rmtree(metadata)
