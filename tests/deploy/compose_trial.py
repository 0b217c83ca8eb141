"""`make compose-test`: the compose file tried for real, where a container engine can be had.

Builds the image, brings the cluster up, solves CartPole, scales the actors, stops one of their
containers, stops a run, and looks at ports and processes. Prints what it saw and how long it took;
ends with 1 at the first thing that is not as docs/cluster.md says. What it starts it ends: the
containers, their volumes, and the engine where it had to start one.

Where the base image cannot be pulled it is made by `debootstrap`, where the package index is out of
reach of a build the wheels are put into wheels/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "qfleet-trial"
BASE_IMAGE = "debian:bookworm-slim"
DEBIAN = "python3,python3-venv,python3-pip,ca-certificates"
FIRST, SECOND = "trial-solved", "trial-stopped"
UP_TIMEOUT_S = 600.0
SOLVE_TIMEOUT_S = 600.0


class TrialError(Exception):
    """Something is not as the documentation says."""


def run(*command: str, timeout_s: float = 120.0, **changes: str) -> str:
    """Standard output of a command that must succeed; `changes` go into its environment."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        tail = (done.stdout + done.stderr)[-3000:]
        raise TrialError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done.stdout


def succeeds(*command: str, timeout_s: float = 120.0) -> bool:
    """Whether a command is there and ends with 0."""
    try:
        run(*command, timeout_s=timeout_s)
    except (TrialError, OSError, subprocess.TimeoutExpired):
        return False
    return True


def until(what: str, look: Callable[[], Any], timeout_s: float, period_s: float = 2.0) -> Any:
    """The first true answer of `look`.

    Raises:
        TrialError: after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TrialError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(period_s)
    return found


class Steps:
    """What was done and how long it took, one line each."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times what happens inside."""
        began_s = time.monotonic()
        print(f"… {name}", flush=True)
        yield
        print(f"✓ {name}: {time.monotonic() - began_s:.0f} s", flush=True)

    @property
    def minutes(self) -> float:
        """Since the trial began."""
        return (time.monotonic() - self._began_s) / 60


@contextmanager
def engine() -> Iterator[None]:
    """A container engine answers inside; one that this program started ends with it.

    Raises:
        TrialError: saying what is missing.
    """
    if succeeds("docker", "info", timeout_s=20):
        yield
        return
    if shutil.which("dockerd") is None or os.geteuid():
        raise TrialError(
            "no container engine answers (docker info). A Debian machine gets one, as root, by\n"
            "  apt-get install docker.io docker-compose debootstrap\n"
            "and then this program, run as root, starts `dockerd` itself"
        )
    with tempfile.TemporaryDirectory(prefix="qfleet-dockerd-") as folder:
        log = Path(folder, "log")
        with log.open("w") as file:
            daemon = subprocess.Popen(
                ["dockerd", "--data-root", f"{folder}/data"], stdout=file, stderr=file
            )
        try:
            until("dockerd", lambda: succeeds("docker", "info", timeout_s=20), 60)
            yield
        finally:
            daemon.terminate()
            daemon.wait(60)


def compose_command() -> tuple[str, ...]:
    """Compose v2, or the older program.

    Raises:
        TrialError: when there is neither.
    """
    for command in (("docker", "compose"), ("docker-compose",)):
        if succeeds(*command, "version"):
            return command
    raise TrialError("neither `docker compose` nor docker-compose: apt-get install docker-compose")


def make_base_image() -> None:
    """The Dockerfile's base: here already, pulled, or made from Debian's packages."""
    if succeeds("docker", "image", "inspect", BASE_IMAGE):
        return
    if succeeds("docker", "pull", "--quiet", BASE_IMAGE):
        return
    if shutil.which("debootstrap") is None:
        raise TrialError(f"{BASE_IMAGE} cannot be pulled: apt-get install debootstrap makes one")
    with tempfile.TemporaryDirectory(prefix="qfleet-base-") as folder:
        run(
            *("debootstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", folder),
            timeout_s=900,
        )
        run("sh", "-c", f"tar -C {folder} -c . | docker import - {BASE_IMAGE}", timeout_s=300)


def index_is_reachable() -> bool:
    """Whether a build would find PyTorch's CPU wheels by itself."""
    script = "apt-get update -qq && apt-get install -qq -y python3-pip >/dev/null && "
    script += "pip download -q --retries 0 --timeout 10 --no-deps -d /tmp torch --index-url "
    script += "https://download.pytorch.org/whl/cpu"
    return succeeds("docker", "run", "--rm", BASE_IMAGE, "sh", "-c", script, timeout_s=120)


class Compose:
    """The project's containers, as a person would handle them."""

    def __init__(self) -> None:
        self._command = (*compose_command(), "-p", PROJECT)

    def __call__(self, *words: str, timeout_s: float = 120.0, **changes: str) -> str:
        return run(*self._command, *words, timeout_s=timeout_s, **changes)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's running containers."""
        words = ("--filter", f"label=com.docker.compose.project={PROJECT}")
        words += ("--filter", f"label=com.docker.compose.service={service}")
        return run("docker", "ps", "--quiet", *words).split()

    def all_containers(self) -> list[str]:
        """Ids of every container of the project, also of those that ended."""
        words = ("--filter", f"label=com.docker.compose.project={PROJECT}")
        return run("docker", "ps", "--all", "--quiet", *words).split()

    def processes(self, container: str) -> list[tuple[int, str]]:
        """(User id, command line) of each process in a container."""
        lines = run("docker", "top", container, "-eo", "pid,uid,args").splitlines()[1:]
        return [(int(line.split()[1]), line.split(maxsplit=2)[2]) for line in lines]

    def roles(self, container: str) -> set[str]:
        """Learner, Replay and Actor, those of them that a container holds, by Ray's titles."""
        titles = " ".join(args for _, args in self.processes(container) if "ray::" in args)
        return {role for role in ("Learner", "Replay", "Actor") if f"ray::{role}" in titles}

    def file(self, path: str) -> str:
        """Text of a file in the volume of runs; empty where there is none."""
        head = self.containers("head")[0]
        return run("docker", "exec", head, "sh", "-c", f"cat /runs/{path} 2>/dev/null || true")

    def follow(self) -> str:
        """The end of the training job's log."""
        return self("logs", "--no-color", "--tail=40", "train")


def bring_up(compose: Compose, *words: str, **changes: str) -> None:
    """`up -d`, repeated as a person would.

    Ray gives a node 30 s to join; on a machine whose cores are taken that is too short at times,
    and older composes take a container that starts again for one that is ill.
    """
    for again in (True, True, False):
        try:
            compose("up", "-d", *words, timeout_s=UP_TIMEOUT_S, **changes)
        except TrialError:
            if not again:
                raise
            print("  up once more", flush=True)
        else:
            return


def summary_of(compose: Compose, name: str) -> dict[str, Any]:
    """summary.json of a run; empty before there is one."""
    text = compose.file(f"{name}/summary.json")
    return dict(json.loads(text)) if text else {}


def learner_steps(compose: Compose, name: str) -> int:
    """As far as a live run has come."""
    rows = compose.file(f"{name}/metrics.jsonl").splitlines()
    steps = [json.loads(row).get("learner_steps") for row in rows if row.endswith("}")]
    return max((step for step in steps if step is not None), default=0)


def expect(holds: bool, what: str) -> None:
    """Raises TrialError unless it holds."""
    if not holds:
        raise TrialError(what)


def check_exposure(compose: Compose) -> None:
    """No port but 127.0.0.1, no root process, nothing writable but what is meant to be."""
    for container in compose.all_containers():
        [seen] = json.loads(run("docker", "inspect", container))
        name, host = seen["Name"], seen["HostConfig"]
        for bindings in (host["PortBindings"] or {}).values():
            addresses = [binding["HostIp"] for binding in bindings]
            expect(addresses == ["127.0.0.1"], f"{name} is published at {addresses}")
        expect(host["ReadonlyRootfs"], f"{name} has a writable root")
        if seen["State"]["Running"]:
            roots = [args for uid, args in compose.processes(container) if uid == 0]
            expect(not roots, f"{name} runs as root: {roots}")


def solve(compose: Compose) -> None:
    """The first job, to its end."""
    train = until("the training job", lambda: compose.containers("train"), 60)[0]
    code = run("docker", "wait", train, timeout_s=SOLVE_TIMEOUT_S).strip()
    summary = summary_of(compose, FIRST)
    expect(code == "0" and bool(summary.get("solved")), f"not solved: {code}, {compose.follow()}")
    print(f"  return {summary['eval_return_mean']} after {summary['env_steps']} env steps")


def places_are_taken(compose: Compose, actors: int) -> bool:
    """Whether so many containers of actors hold actors."""
    containers = compose.containers("actors")
    return len(containers) == actors and all("Actor" in compose.roles(c) for c in containers)


def check_places(compose: Compose, actors: int) -> None:
    """Learner, shards and actors are where the compose file says, and nowhere else."""
    expect(places_are_taken(compose, actors), f"a container of {actors} has no actor")
    places = {"head": "Learner", "replay": "Replay", "actors": "Actor"}
    for service, role in places.items():
        for container in compose.containers(service):
            roles = compose.roles(container)
            expect(roles == {role}, f"in a container of {service}: {roles}")


def stop_one(compose: Compose) -> None:
    """One actor container less, and the run goes on."""
    run("docker", "stop", compose.containers("actors")[0], timeout_s=120)
    before = learner_steps(compose, SECOND)
    until(
        "learner steps after an actor container ended",
        lambda: learner_steps(compose, SECOND) > before + 1000,
        180,
    )
    expect(not summary_of(compose, SECOND), f"the run ended: {compose.follow()}")


def stop_run(compose: Compose) -> None:
    """The job is stopped and its last checkpoint is there."""
    compose("stop", "train", timeout_s=180)
    summary = summary_of(compose, SECOND)
    head = compose.containers("head")[0]
    newest = run("docker", "exec", head, "readlink", "-f", f"/runs/{SECOND}/latest").strip()
    expect(
        summary.get("status") == "stopped", f"status {summary.get('status')}: {compose.follow()}"
    )
    last = int(Path(newest).name.split("-")[1])
    expect(
        last == summary["learner_steps"],
        f"{newest}, after {summary['learner_steps']} steps: {compose.follow()}",
    )
    print(f"  checkpoint of learner step {last}, exit code {summary['exit_code']}")


def trial(steps: Steps, keep: ExitStack) -> None:
    """Everything, in order."""
    keep.enter_context(engine())
    compose = Compose()
    with steps.step("base image"):
        make_base_image()
    if not any((ROOT / "wheels").glob("*.whl")) and not index_is_reachable():
        with steps.step("wheels, the index being out of reach"):
            run("make", "wheels", timeout_s=900)
    run("make", "token")
    with steps.step("build"):
        compose("build", "head", timeout_s=1800)
    keep.callback(compose, "down", "--volumes", "--remove-orphans", timeout_s=300)
    with steps.step("up"):
        scale = ("--scale", "actors=2")
        bring_up(compose, *scale, RUN=FIRST, TRAIN="cartpole")
        check_exposure(compose)
    with steps.step("CartPole solved"):
        solve(compose)
    with steps.step("a second run, every role in its own container"):
        endless = "cartpole --actors.count 6 --eval.stop_when_solved false"
        changes = {"RUN": SECOND, "TRAIN": f"{endless} --run.max_learner_steps 1e9"}
        bring_up(compose, *scale, **changes)
        until("learner steps", lambda: learner_steps(compose, SECOND) > 1000, SOLVE_TIMEOUT_S)
        check_places(compose, 2)
    with steps.step("actors scaled from 2 containers to 3"):
        more = ("--scale", "actors=3")
        bring_up(compose, "--no-recreate", *more, **changes)
        until("an actor in the third container", lambda: places_are_taken(compose, 3), 180)
        check_places(compose, 3)
        check_exposure(compose)
    with steps.step("one actor container stopped, the run goes on"):
        stop_one(compose)
    with steps.step("run stopped, its last checkpoint written"):
        stop_run(compose)


def main() -> int:
    """Exit code of the trial."""
    steps = Steps()
    try:
        with ExitStack() as keep:
            trial(steps, keep)
    except TrialError as error:
        print(f"compose-test: {error}", file=sys.stderr)
        return 1
    print(f"compose-test passed in {steps.minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
