"""Three hosts (namespaces of this machine) in one cluster, by the lines of docs/cluster.md."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hosts import ROOT, Host, hosts

PAGE = (ROOT / "docs" / "cluster.md").read_text()
START_TIMEOUT_S = 90.0


def line_of(beginning: str) -> str:
    """The page's command that begins so, without its comment."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(beginning)]
    return line.split("  #")[0].strip()


def reachable(host: Host, port: int) -> bool:
    """Whether something on `host` listens."""
    script = f"import socket; socket.create_connection(('{host.address}', {port}), 1)"
    done = subprocess.run(
        ["ip", "netns", "exec", host.namespace, sys.executable, "-c", script], capture_output=True
    )
    return done.returncode == 0


def until_nodes(head: Host, count: int) -> None:
    """Until so many hosts are in the cluster of `head`."""
    script = (
        f"{sys.executable} -c \"import ray; ray.init(address='auto', logging_level='ERROR'); "
        f"print('alive', sum(node['Alive'] for node in ray.nodes()))\""
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while f"alive {count}" not in (said := head.run(script)[1]):
        assert time.monotonic() < deadline, said
        time.sleep(1)


@contextmanager
def page_cluster(folder: Path) -> Iterator[list[Host]]:
    """head, host2 and host3, with one token that the page's lines make."""
    with hosts(3, folder) as made:
        head, *others = made
        generate = line_of("mkdir -p -m 700 ~/.ray && ")
        code, said = head.run(f"sh -c '{generate}; {line_of('chmod 600 ~/.ray')}'")
        assert code == 0, said
        token = head.home / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text() not in said
        for host in others:
            host.give_token(token.read_text())
        head.start(line_of("ray start --head"))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not reachable(head, 6379):
            assert time.monotonic() < deadline, "the head does not listen"
            time.sleep(0.5)
        for host in others:
            host.start(line_of("ray start --address=head:6379"))
        until_nodes(head, 3)
        yield made


def summary(run: Path) -> dict[str, Any]:
    """Of a run that has ended."""
    return dict(json.loads((run / "summary.json").read_text()))
