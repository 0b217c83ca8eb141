"""Who reaches a Ray of our own: mode and token as they are found, and where it listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qfleet.cluster import exposure

SOURCE = Path(__file__).resolve().parents[2] / "src"
LISTENERS = """
import psutil
from qfleet.cluster.plan import ClusterPlan
from qfleet.cluster.ray_cluster import connect, disconnect, import_ray
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

plan = run_plans(resolve_config(Config(actors={"count": 1}), None, cpus=2, gpus=0)).cluster
cluster = connect(plan)
ray = import_ray()

@ray.remote(num_cpus=0)
class Role:
    def answer(self):
        return 42

role = Role.remote()
assert ray.get(role.answer.remote(), timeout=60) == 42
driver = psutil.Process()
for process in [driver, *driver.children(recursive=True)]:
    for connection in process.net_connections(kind="inet"):
        if connection.status == "LISTEN":
            print(connection.laddr.ip.removeprefix("::ffff:"))
disconnect(cluster)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No setting of Ray's, and a token file that is not there yet."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "deep" / "auth_token"))
    return tmp_path


def test_ensure_token_writes_one_for_its_owner_alone(home: Path) -> None:
    exposure.ensure_token()

    path = home / "deep" / "auth_token"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text()) == 64
    assert exposure.unsafe_settings() == []


def test_ensure_token_keeps_the_one_that_is_there(home: Path) -> None:
    path = home / "deep" / "auth_token"
    path.parent.mkdir()
    path.write_text("mine")

    exposure.ensure_token()

    assert path.read_text() == "mine"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_ensure_token_of_the_environment_turns_authentication_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token without the mode would be no authentication at all."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)

    exposure.ensure_token()

    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not (home / "deep").exists()
    assert exposure.unsafe_settings() == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o602])
def test_token_that_others_can_read_is_said_with_the_remedy(home: Path, mode: int) -> None:
    exposure.ensure_token()
    path = home / "deep" / "auth_token"
    path.chmod(mode)

    assert exposure.unsafe_settings() == [
        f"the token of Ray in {path} can be read by other users: chmod 600 it, and make a new one "
        "if others had access (SECURITY.md)"
    ]


@pytest.mark.parametrize("mode", ["disabled", ""])
def test_authentication_that_is_off_is_said(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)

    (said,) = exposure.unsafe_settings()

    assert said.startswith(f"Ray runs without authentication (RAY_AUTH_MODE={mode or 'unset'}): ")
    assert said.endswith("unset RAY_AUTH_MODE (SECURITY.md)")


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_private_ray_listens_on_loopback_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )

    assert done.returncode == 0, done.stderr
    addresses = done.stdout.split()
    assert len(addresses) > 4  # control store, node, driver, role …
    assert set(addresses) == {"127.0.0.1"}
