"""When a compiled block is built, and the process that builds it.

`required` waits for the build before the first update (`backends.py`); an asynchronous run with
`auto` builds beside itself when the rest of the run is long enough, polled by its Ray shell between
two blocks. Lockstep has decided before its start (`backends.has_fast_form`): eager and compiled
differ in their last bits. No torch here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from qfleet.common.errors import ConfigError
from qfleet.common.plan_json import plan_to_json
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.backend import LearnerPath
from qfleet.learner.fast.notices import say_once
from qfleet.learner.fast.package_spec import missing_compiler
from qfleet.learner.plan import LearnerPlan

BUILD_S = 80.0
"""What building one package takes beside a fleet that keeps two cores busy (measured; 25 alone)."""
PAYS_FACTOR = 3.0
"""A package is built when the eager updates still to do take this many times `BUILD_S`."""
MIN_UPDATES_MEASURED = 1_000
"""Updates after which the eager rate is believed."""
BUILD_TIMEOUT_S = 1_200.0
_POLL_S = 0.5
_END_TIMEOUT_S = 5.0
_REASON_BYTES = 4_096
"""How much of what a build has written is read for its last line."""


def build_required(plan: LearnerPlan, spec: EnvironmentSpec) -> None:
    """Build the package now and wait for it, in a process of its own.

    Raises:
        ConfigError: when there is no compiler or the build fails, with the remedy.
    """
    missing = missing_compiler()
    if missing is not None:
        raise ConfigError(
            f"learner.compile = required: {missing}; install g++ (Debian, Ubuntu: apt-get install "
            "g++), or name a compiler in CXX; a new run can use --learner.compile off"
        )
    say_once("compiling the learner's block, once for this network and machine, about a minute")
    build = BuildProcess(plan, spec)
    try:
        failure = build.wait()
    finally:
        build.end()
    if failure is not None:
        raise ConfigError(
            f"learner.compile = required: the block cannot be compiled: {failure}; "
            "use --learner.compile off"
        )


class BuildProcess:
    """One running build; it ends itself when the process that started it is gone."""

    def __init__(self, plan: LearnerPlan, spec: EnvironmentSpec) -> None:
        command = [sys.executable, "-P", "-m", "qfleet.learner.fast.build_block"]
        command += ["--plan-json", plan_to_json(plan)]
        command += ["--spec-json", spec.to_json(), "--parent-pid", str(os.getpid())]
        search = [str(Path.cwd()) if path == "" else path for path in sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
        # A file: nobody reads while it compiles, and a full pipe would hold it back for ever.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    @property
    def is_running(self) -> bool:
        """Whether it still compiles."""
        return self._process.poll() is None

    def wait(self) -> str | None:
        """Wait for the end; None when the package is in the cache, else the reason."""
        try:
            code = self._process.wait(timeout=BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"the compiler did not end within {BUILD_TIMEOUT_S:.0f} s"
        if code == 0:
            return None
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _REASON_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def end(self) -> None:
        """Stop it together with the compiler it started; does nothing after its end."""
        if self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=_END_TIMEOUT_S)
        self._errors.close()


class Progress(NamedTuple):
    """Where a learner stands; the difference of two gives its rates."""

    now_s: float
    """Any steady clock."""
    learner_steps: int
    env_steps: int
    """Environment steps of the fleet."""
    update_s: float
    """Seconds spent in updates so far."""


def eager_s_left(plan: LearnerPlan, start: Progress, now: Progress) -> float:
    """Seconds of eager updates that the budgets still allow; infinite without a budget.

    Reckoned from the rate since `start`; the smallest of the run's budgets counts.
    """
    updates, elapsed_s = now.learner_steps - start.learner_steps, now.now_s - start.now_s
    left = [float("inf")]
    if plan.max_learner_steps is not None:
        left.append(plan.max_learner_steps - now.learner_steps)
    if plan.max_env_steps is not None and plan.samples_per_insert is not None:
        samples = (plan.max_env_steps - now.env_steps) * plan.samples_per_insert
        left.append(samples / plan.batch_size)
    if plan.max_wall_s is not None:
        left.append((plan.max_wall_s - elapsed_s) * updates / elapsed_s)
    return max(0.0, min(left)) * (now.update_s - start.update_s) / updates


class PathUpgrade:
    """Moves an asynchronous run from eager to compiled when that pays.

    Once the rate is known and the rest of the run is long enough, a build runs beside the training
    until `poll` finds it ended. Owned by the learner's thread.
    """

    def __init__(
        self, plan: LearnerPlan, spec: EnvironmentSpec, device: str, path: LearnerPath
    ) -> None:
        self._plan, self._spec = plan, spec
        self._build: BuildProcess | None = None
        self._start: Progress | None = None
        self._next_poll_s = float("-inf")
        self._is_open = (
            plan.compile == "auto"
            and plan.is_compiled_on_cpu
            and device == "cpu"
            and path == "eager"
        )

    def poll(self, now: Progress) -> bool:
        """Start or watch the build; true when a package has just been finished."""
        if not self._is_open or now.now_s < self._next_poll_s:
            return False
        self._next_poll_s = now.now_s + _POLL_S
        if self._build is not None:
            return self._watch(self._build)
        if self._start is None:
            self._start = now
        elif now.learner_steps - self._start.learner_steps >= MIN_UPDATES_MEASURED:
            self._consider(self._start, now)
        return False

    def _consider(self, start: Progress, now: Progress) -> None:
        if eager_s_left(self._plan, start, now) <= PAYS_FACTOR * BUILD_S:
            return
        missing = missing_compiler()
        if missing is not None:
            self._give_up(missing)
        else:
            self._build = BuildProcess(self._plan, self._spec)

    def _watch(self, build: BuildProcess) -> bool:
        if build.is_running:
            return False
        failure = build.wait()
        self.close()
        if failure is not None:
            self._give_up(failure)
        return failure is None

    def _give_up(self, reason: str) -> None:
        self._is_open = False
        say_once(f"the learner stays eager PyTorch: {reason}")

    def close(self) -> None:
        """End a build that is still running; nothing is built any more."""
        self._is_open = False
        if self._build is not None:
            self._build.end()
            self._build = None
