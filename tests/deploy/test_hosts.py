"""Three hosts (namespaces of this machine) and the lines of docs/cluster.md, as written there.

`make hosts-test`; needs root. docs/cluster.md says what this is and is not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import ROOT, Host, hosts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
START_TIMEOUT_S = 90.0
ERROR_TIMEOUT_S = 30.0
OWN_ENVIRONMENT = """
import gymnasium


def make(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)
"""


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """head, host2 and host3, with one token that the page's lines make."""
    with hosts(3, tmp_path_factory.mktemp("hosts")) as made:
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


def roles_on(host: Host) -> set[str]:
    """Classes of the Ray actors that ever lived on a host."""
    _, said = host.run("grep -rhoa '^:actor_name:.*' /tmp/ray/session_latest/logs")
    return set(re.findall(r":actor_name:(\w+)", said))


def summary(run: Path) -> dict[str, Any]:
    """Of a run that has ended."""
    return dict(json.loads((run / "summary.json").read_text()))


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_three_hosts_solve_cartpole(cluster: list[Host], tmp_path: Path, seed: int) -> None:
    command = line_of("qfleet train --ray.address auto")

    code, said = cluster[0].run(f"{command} --seed {seed} --run-dir {tmp_path}/run", 200)

    assert code == 0, said
    found = summary(tmp_path / "run")
    assert (found["solved"], found["actors"], found["replay_shards"]) == (True, 4, 2)
    assert found["accounting"]["lost"] == 0
    assert roles_on(cluster[1]) | roles_on(cluster[2]) >= {"ActorShell"}
    print(f"seed {seed}: {found['wall_s']:.0f} s, train {found['train_s']:.1f} s")


def test_job_submitted_from_outside_solves_cartpole(cluster: list[Host], tmp_path: Path) -> None:
    command = line_of("ray job submit -- qfleet train")
    command = command.replace("/var/lib/qfleet/cartpole", f"{tmp_path}/run")

    code, said = cluster[0].run(command, 200, RAY_ADDRESS="http://127.0.0.1:8265")

    assert code == 0, said
    assert summary(tmp_path / "run")["solved"]


def test_own_module_that_other_hosts_do_not_have_is_sent_along(cluster: list[Host]) -> None:
    command = line_of("qfleet train --env.factory my_env:make")
    (cluster[0].home / "my_env.py").write_text(OWN_ENVIRONMENT)
    tiny = "--run.max_learner_steps 200 --eval.episodes 2 --eval.confirm_episodes 2"
    tiny += " --eval.period_learner_steps 100 --actors.count 4 --run-dir /dev/shm/run"

    # /dev/shm is this host's own: nobody else sees the module there.
    code, said = cluster[0].run(
        f'sh -c "mv my_env.py /dev/shm; cd /dev/shm; {command} {tiny}; c=$?; '
        'cat run/summary.json; exit $c"',
        200,
    )

    assert code == 0, said
    assert '"actors": 4' in said


@pytest.mark.parametrize(
    ("changes", "address", "expected"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "auto", "refuses our token"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "auto", "token"),
        ({"RAY_AUTH_MODE": "disabled"}, "auto", "token"),
        ({}, "10.88.0.77:6379", "no Ray cluster answers at 10.88.0.77:6379"),
        ({}, "10.88.0.2:1", "no Ray cluster answers at 10.88.0.2:1"),
    ],
    ids=["wrong token", "no token", "no authentication", "no such host", "no such port"],
)
def test_what_cannot_be_joined_is_an_error_with_its_remedy(
    cluster: list[Host], changes: dict[str, str], address: str, expected: str
) -> None:
    began_s = time.monotonic()

    code, said = cluster[0].run(
        f"qfleet train --ray.address {address} --run-dir /dev/shm/refused", 90, **changes
    )

    assert code == 2, said
    assert expected in said
    assert "Traceback" not in said
    assert time.monotonic() - began_s < ERROR_TIMEOUT_S


def test_shortage_is_a_table_of_wanted_and_available(cluster: list[Host]) -> None:
    flags = "--actors.count 100 --actors.min_count 100 --ray.wait_for_resources_s 0"

    code, said = cluster[0].run(
        f"qfleet train --ray.address auto {flags} --run-dir /dev/shm/short", 90
    )

    assert code == 2, said
    assert re.search(r"CPU: +wanted 5\d", said)
