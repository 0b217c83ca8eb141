"""Three hosts (namespaces of this machine) and the lines of docs/cluster.md, as written there.

`make hosts-test`; needs root. docs/cluster.md says what this is and is not.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Host
from page_cluster import line_of, summary

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
ERROR_TIMEOUT_S = 30.0
OWN_ENVIRONMENT = """
import gymnasium


def make(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)
"""


def roles_on(host: Host) -> set[str]:
    """Classes of the Ray actors that ever lived on a host."""
    _, said = host.run("grep -rhoa '^:actor_name:.*' /tmp/ray/session_latest/logs")
    return set(re.findall(r":actor_name:(\w+)", said))


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


def test_many_shards_and_actors_over_three_hosts(cluster: list[Host], tmp_path: Path) -> None:
    command = line_of("qfleet train --ray.address auto").split(" --actors")[0]
    flags = f"--replay.shards 4 --actors.count 8 --actors.num_cpus 0.25 --run-dir {tmp_path}/run"

    code, said = cluster[0].run(f"{command} {flags}", 200)

    assert code == 0, said
    found = summary(tmp_path / "run")
    assert (found["solved"], found["actors"], found["replay_shards"]) == (True, 8, 4)
    assert len([shard for shard in found["shards"] if shard["sampled"] > 0]) == 4
    assert found["accounting"]["lost"] == 0


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
