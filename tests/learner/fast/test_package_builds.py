"""When a package is built beside a run, and how the process that builds it ends."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.fast import notices, package_builds
from qfleet.learner.fast.package_builds import BuildProcess, PathUpgrade, Progress, eager_s_left
from qfleet.learner.fast.package_cache import cache_directory
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


def small_plan() -> LearnerPlan:
    """A run that may use a package."""
    config = Config(
        network={"hidden_sizes": (8,), "normalization": "batch"},
        learner={
            "device": "cpu",
            "batch_size": 4,
            "updates_per_call": 4,
            "target_update_period_learner_steps": 8,
            "publish_period_learner_steps": 4,
            "compile": "auto",
        },
        eval={"period_learner_steps": 8},
        run={"max_learner_steps": 1_000},
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


def async_plan(**run: Any) -> LearnerPlan:
    return replace(small_plan(), **{"max_learner_steps": None, **run})


@pytest.mark.parametrize(
    ("budget", "left_s"),
    [
        # 2,000 updates in 10 s, of which 4 s in updates: 2 ms each.
        ({}, float("inf")),
        ({"max_learner_steps": 12_000}, 20.0),
        # 3,000 env steps left at 16 draws each are 12,000 updates of 4.
        ({"max_env_steps": 3_500}, 24.0),
        # 90 s left at 200 updates/s are 18,000 updates.
        ({"max_wall_s": 100.0}, 36.0),
        ({"max_wall_s": 100.0, "max_learner_steps": 12_000}, 20.0),
        ({"max_learner_steps": 1_000}, 0.0),
    ],
)
def test_eager_s_left_takes_the_smallest_budget(budget: dict[str, Any], left_s: float) -> None:
    start, now = Progress(5.0, 0, 0, 1.0), Progress(15.0, 2_000, 500, 5.0)
    assert eager_s_left(async_plan(**budget), start, now) == pytest.approx(left_s)


class FakeBuild:
    """A build whose end the test decides."""

    started: list["FakeBuild"]
    failure: str | None = None

    def __init__(self, plan: LearnerPlan, spec: EnvironmentSpec) -> None:
        self.is_running = True
        self.was_ended = False
        self.started.append(self)

    def wait(self) -> str | None:
        return self.failure

    def end(self) -> None:
        self.is_running, self.was_ended = False, True


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[FakeBuild]:
    FakeBuild.started, FakeBuild.failure = [], None
    monkeypatch.setattr(package_builds, "BuildProcess", FakeBuild)
    monkeypatch.setattr(package_builds, "missing_compiler", lambda: None)
    monkeypatch.setattr(notices, "_said", set())
    return FakeBuild.started


def drive(upgrade: PathUpgrade, seconds: int, first_s: int = 0) -> list[bool]:
    """One poll a second of a learner that does 200 updates/s and nothing else."""
    return [
        upgrade.poll(Progress(float(s), 200 * s, 0, float(s)))
        for s in range(first_s, first_s + seconds)
    ]


def test_path_upgrade_long_run_builds_once_and_reports_the_end(builds: list[FakeBuild]) -> None:
    upgrade = PathUpgrade(async_plan(max_learner_steps=1_000_000), SPEC, "cpu", "eager")
    assert drive(upgrade, 5) == [False] * 5
    assert builds == []  # 800 updates are too few to know the rate
    assert drive(upgrade, 10, 5) == [False] * 10
    assert len(builds) == 1
    builds[0].is_running = False
    assert drive(upgrade, 3, 15) == [True, False, False]
    assert len(builds) == 1


@pytest.mark.parametrize(
    ("plan", "device", "path"),
    [
        # 48,000 updates at 200/s are 240 s: exactly three times a build, from the first poll on.
        (async_plan(max_learner_steps=48_000), "cpu", "eager"),
        (replace(async_plan(), compile="off"), "cpu", "eager"),
        (async_plan(), "cuda", "eager"),
        (async_plan(), "cpu", "compiled"),
    ],
    ids=["short", "lockstep", "gpu", "compiled already"],
)
def test_path_upgrade_builds_nothing_where_it_does_not_pay(
    builds: list[FakeBuild], plan: LearnerPlan, device: str, path: Any
) -> None:
    assert drive(PathUpgrade(plan, SPEC, device, path), 100) == [False] * 100
    assert builds == []


def test_path_upgrade_failed_build_is_said_once(
    builds: list[FakeBuild], capsys: pytest.CaptureFixture[str]
) -> None:
    FakeBuild.failure = "the compiler ended"
    upgrade = PathUpgrade(async_plan(), SPEC, "cpu", "eager")
    drive(upgrade, 10)
    builds[0].is_running = False
    assert drive(upgrade, 10, 10) == [False] * 10
    assert (
        capsys.readouterr().err == "qfleet: the learner stays eager PyTorch: the compiler ended\n"
    )


def test_path_upgrade_without_compiler_says_so_once(
    builds: list[FakeBuild], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(package_builds, "missing_compiler", lambda: "no C++ compiler")
    drive(PathUpgrade(async_plan(), SPEC, "cpu", "eager"), 20)
    assert builds == []
    assert capsys.readouterr().err.count("stays eager PyTorch: no C++ compiler") == 1


def test_path_upgrade_close_ends_the_build(builds: list[FakeBuild]) -> None:
    upgrade = PathUpgrade(async_plan(), SPEC, "cpu", "eager")
    drive(upgrade, 10)
    upgrade.close()
    assert builds[0].was_ended
    assert drive(upgrade, 10, 10) == [False] * 10


def test_build_process_end_stops_it_with_its_children() -> None:
    build = BuildProcess(small_plan(), SPEC)
    process = psutil.Process(build._process.pid)
    assert process.is_running()
    build.end()
    assert psutil.wait_procs([process], timeout=10)[1] == []
    assert not cache_directory().exists() or not list(cache_directory().glob("*.pt2"))


def test_build_process_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    build = BuildProcess(small_plan(), SPEC)
    failure = build.wait()
    build.end()
    assert failure == (
        "no C++ compiler: `no-such-compiler` is not on the PATH; install g++ or name a compiler "
        "in CXX"
    )


def test_build_process_that_writes_much_ends_and_its_last_line_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        "head -c 1000000 /dev/zero | tr '\\0' x >&2\n"  # more than any pipe holds
        "printf '\\nthe cause\\n' >&2\n"
        "exit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(package_builds.sys, "executable", str(python))
    build = BuildProcess(small_plan(), SPEC)
    try:
        deadline_s = time.monotonic() + 20.0
        while build.is_running and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert not build.is_running
        assert build.wait() == "the cause"
    finally:
        build.end()


def test_build_process_ends_with_a_parent_that_was_killed() -> None:
    program = (
        "import os\n"
        "from qfleet.common.plan_json import plan_from_json\n"
        "from qfleet.learner.plan import LearnerPlan\n"
        "from qfleet.common.types import EnvironmentSpec\n"
        "from qfleet.learner.fast.package_builds import BuildProcess\n"
        f"plan = plan_from_json(LearnerPlan, {plan_to_json(small_plan())!r})\n"
        f"spec = EnvironmentSpec.from_json({SPEC.to_json()!r})\n"
        "print(BuildProcess(plan, spec)._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == -9
    try:
        process = psutil.Process(int(started.stdout))
    except psutil.NoSuchProcess:
        return  # it has ended already
    assert psutil.wait_procs([process], timeout=30)[1] == []
