"""docker-compose.yml: valid, closed to strangers, and its commands are ones that the programs take.

`make compose-test` brings it up for real; tests/deploy/test_hosts.py runs these commands on hosts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.settings.config_loading import load_config

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
JOINED = ("replay", "actors", "learner")


def services() -> dict[str, Any]:
    """What compose reads, with every variable at its default."""
    text = (ROOT / "docker-compose.yml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return dict(yaml.safe_load(text)["services"])


SERVICES = services()


def words(service: str) -> list[str]:
    """The command as compose splits it."""
    return shlex.split(SERVICES[service]["command"])


def test_file_is_a_valid_compose_file() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            str(ROOT / "docker-compose.yml"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_services_are_the_roles_of_a_cluster_and_the_job() -> None:
    assert sorted(SERVICES) == ["actors", "head", "learner", "replay", "train"]
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["learner"]
    assert SERVICES["learner"]["profiles"] == ["gpu"]
    [device] = SERVICES["learner"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_neither_root_nor_reachable_nor_without_the_token(name: str) -> None:
    service = SERVICES[name]

    assert service["user"] == "1000:1000"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("ports", []) == (["127.0.0.1:8265:8265"] if name == "head" else [])
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert service["secrets"] == ["ray_token"]
    assert service["shm_size"] == "1gb"
    assert not {"privileged", "network_mode", "pid", "ipc"} & set(service)


def test_last_checkpoint_has_the_time_that_it_takes() -> None:
    wait_s = float(SERVICES["head"]["environment"]["RAY_JOB_STOP_WAIT_TIME_S"])
    grace_s = float(SERVICES["train"]["stop_grace_period"].removesuffix("s"))

    assert grace_s > wait_s >= 60
    # Compose stops what depends on others first.
    assert set(SERVICES["train"]["depends_on"]) == {"head", "replay", "actors"}


@pytest.mark.parametrize("name", ["head", *JOINED])
def test_service_starts_a_node_with_options_that_ray_takes(name: str) -> None:
    import click
    from ray.scripts.scripts import start

    program, command, *options = words(name)
    context = start.make_context("start", options, resilient_parsing=False)

    assert (program, command) == ("ray", "start")
    assert isinstance(context, click.Context)
    taken = context.params
    assert taken["block"] is True
    assert taken["head"] is (name == "head")
    assert taken["address"] == (None if name == "head" else "head:6379")
    assert taken["num_gpus"] == (1 if name == "learner" else None)
    # The learner takes the GPU where there is one, else it is with the head.
    role = "learner" if name == "head" else name
    assert json.loads(taken["resources"]) == {role: 100}
    assert 2 * taken["object_store_memory"] < 2**30, "it lies in /dev/shm: shm_size"


def test_job_is_a_training_run_that_may_be_repeated() -> None:
    program, qfleet, train, *flags = words("train")

    assert (program, qfleet, train) == ("qfleet-job", "qfleet", "train")
    arguments = parse_train_arguments(flags)
    assert arguments.resume == "auto"

    config = load_config(
        arguments.target, arguments.files, arguments.settings, problems=arguments.problems
    )
    assert (config.env.id, config.run.dir) == ("CartPole-v1", "/runs/cartpole")
    pinned = [config.ray.learner_resources, config.ray.replay_resources, config.ray.actor_resources]
    assert pinned == [{"learner": 0.01}, {"replay": 0.01}, {"actors": 0.01}]


FAKE_RAY = """#!/bin/sh
echo "$*" >> "$LOG"
case "$2" in
  submit) trap 'exit 1' USR1; echo $$ > "$LOG.pid"; while :; do sleep 0.05; done ;;
  stop) kill -USR1 "$(cat "$LOG.pid")" ;;
esac
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """An environment for deploy/job.sh in which `ray` is a script that notes its calls."""
    ray = tmp_path / "ray"
    ray.write_text(FAKE_RAY)
    ray.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": f"{tmp_path}/log"}


def test_job_script_stopped_stops_its_job_and_ends_well(job: dict[str, str]) -> None:
    log = Path(job["LOG"])
    process = subprocess.Popen(["sh", ROOT / "deploy/job.sh", "qfleet", "train", "a b"], env=job)
    deadline = time.monotonic() + 20
    while not (Path(f"{log}.pid").exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == 0
    submitted, stopped = log.read_text().splitlines()
    found = re.fullmatch(
        r"job submit --submission-id (qfleet-[\d-]+) -- qfleet train a b", submitted
    )
    assert found
    assert stopped == f"job stop {found[1]}"


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 1)])
def test_job_script_ends_as_its_job_does(job: dict[str, str], code: int, expected: int) -> None:
    Path(job["LOG"]).with_name("ray").write_text(f"#!/bin/sh\nexit {code}\n")

    done = subprocess.run(["sh", ROOT / "deploy/job.sh", "qfleet", "train"], env=job, timeout=20)

    assert done.returncode == expected


def test_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    def make() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", ROOT / "deploy/token.sh", "secret/ray_token"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )

    first = make()
    file = tmp_path / "secret" / "ray_token"
    token = file.read_text()
    second = make()

    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert first.stdout.startswith("Made secret/ray_token")
    assert token not in first.stdout
    assert (second.stdout, file.read_text()) == ("", token)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_uid == (os.getuid() or 1000)


def test_compose_trial_without_an_engine_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/deploy/compose_trial.py"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "no container engine answers" in done.stderr
    assert "apt-get install docker.io docker-compose debootstrap" in done.stderr
    assert "passed" not in done.stdout


def test_image_takes_every_file_that_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    sources = [source for line in copied for source in line.split() if source != "wheel[s]"]

    assert len(sources) > 10
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}".rstrip("/") in ignored or source == "deploy/", source
    assert ignored[1] == "*"
