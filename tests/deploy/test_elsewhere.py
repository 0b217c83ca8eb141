"""deploy/: Kubernetes, Slurm and `ray up`, as far as they can be checked without such a cluster."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.settings.config_loading import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
RAY_UP = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())


def pods() -> list[dict[str, Any]]:
    """Every pod template of the RayJob."""
    cluster = KUBERNETES[2]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [KUBERNETES[2]["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]


def check_train_command(words: list[str]) -> None:
    """`qfleet train …` with keys and values that there are."""
    assert words[:2] == ["qfleet", "train"]
    arguments = parse_train_arguments(words[2:])
    load_config(arguments.target, arguments.files, arguments.settings, problems=arguments.problems)
    assert arguments.resume == "auto"


def check_ray_start(command: str) -> None:
    """`ray start …` as Ray's own program reads it."""
    from ray.scripts.scripts import start

    start.make_context("start", shlex.split(command.partition("ray start ")[2]))


def test_rayjob_has_the_fields_of_its_custom_resource() -> None:
    schema = yaml.safe_load((ROOT / "tests/deploy/rayjob.schema.yaml").read_text())

    assert [document["kind"] for document in KUBERNETES] == [
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "RayJob",
    ]
    jsonschema.validate(KUBERNETES[2], schema)
    cluster = KUBERNETES[2]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "qfleet-token"}
    assert cluster["rayVersion"] == ray.__version__
    check_train_command(shlex.split(KUBERNETES[2]["spec"]["entrypoint"]))


def test_every_pod_is_under_the_network_policy_and_not_root() -> None:
    [(name, value)] = KUBERNETES[1]["spec"]["podSelector"]["matchLabels"].items()

    for pod in pods():
        assert pod["metadata"]["labels"][name] == value
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for pod in pods()[1:]:
        [container] = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_worker_groups_offer_the_resources_that_roles_are_pinned_to() -> None:
    groups = KUBERNETES[2]["spec"]["rayClusterSpec"]["workerGroupSpecs"]

    # KubeRay puts the value into a shell line: it is JSON within a string.
    offered = {
        group["groupName"]: json.loads(json.loads(group["rayStartParams"]["resources"]))
        for group in groups
    }
    assert offered == {"replay": {"replay": 100}, "actors": {"actors": 100}}


def test_ray_up_file_is_one_that_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())

    jsonschema.validate(RAY_UP, schema)
    validate_config(prepare_config(RAY_UP | {"cluster_name": "checked"}))
    for command in [RAY_UP["head_start_ray_commands"][1], RAY_UP["worker_start_ray_commands"][1]]:
        assert command.startswith("RAY_AUTH_MODE=token ")
        check_ray_start(command)
    assert RAY_UP["file_mounts"]["~/.ray/auth_token"] == ".secrets/ray_token"
    assert ".secrets" in RAY_UP["rsync_exclude"]


# ---- Slurm: its programs and Ray's are scripts that note their calls ----

FAKES = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" != show ] || printf "node1\\nnode2\\n"',
    "srun": 'echo "srun $1" >> "$LOG"; shift; exec "$@"',
    "ray": 'echo "ray $*" >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "qfleet": 'echo "qfleet $*" >> "$LOG"; exec sh -c "$DRIVER"',
}
WAITS = "trap 'echo checkpoint >> \"$LOG\"; exit 143' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A job's environment on two nodes."""
    for name, script in FAKES.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("00")
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": f"{tmp_path}/log",
        "RUN": f"{tmp_path}/run",
        "SLURM_JOB_NAME": "qfleet",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
        "DRIVER": "exit 0",
    }


def submit(environment: dict[str, str]) -> subprocess.Popen[str]:
    """The batch script as Slurm starts it."""
    return subprocess.Popen(
        ["bash", DEPLOY / "slurm.sbatch", "cartpole", "--seed", "3"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_slurm_script_runs_one_command_on_all_nodes(slurm: dict[str, str]) -> None:
    with submit(slurm) as process:
        assert process.wait(20) == 0

    shown, srun, symmetric, train = Path(slurm["LOG"]).read_text().splitlines()
    assert shown == "scontrol show hostnames node[1-2]"
    assert srun == "srun --kill-on-bad-exit=0"
    assert symmetric.startswith(
        "ray symmetric-run --address node1:6379 --min-nodes 2 --num-cpus 4 -- sh -c "
    )
    assert train == (
        f"qfleet train cartpole --seed 3 --ray.address node1:6379 --run-dir {slurm['RUN']} "
        "--resume auto"
    )
    check_train_command(train.split())


def test_slurm_script_before_the_end_of_its_time_saves_and_queues_again(
    slurm: dict[str, str],
) -> None:
    log = Path(slurm["LOG"])
    with submit({**slurm, "DRIVER": WAITS}) as process:
        deadline = time.monotonic() + 20
        while not (log.exists() and "qfleet train" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)  # the driver sets its trap

        process.send_signal(signal.SIGTERM)  # as --signal=B:TERM does

        assert process.wait(20) == 143
    assert log.read_text().splitlines()[-2:] == ["checkpoint", "scontrol requeue 7"]


def test_slurm_script_ends_as_the_run_does(slurm: dict[str, str]) -> None:
    with submit({**slurm, "DRIVER": "exit 3"}) as process:
        assert process.wait(20) == 3

    assert "requeue" not in Path(slurm["LOG"]).read_text()


def test_slurm_script_without_a_token_starts_nothing(slurm: dict[str, str]) -> None:
    Path(slurm["HOME"], ".ray", "auth_token").unlink()

    with submit(slurm) as process:
        assert process.wait(20) == 2
        assert process.stderr is not None
        assert "docs/cluster.md" in process.stderr.read()
    assert not Path(slurm["LOG"]).exists()
