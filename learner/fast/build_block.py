"""Compiles one learner block into the cache; a process of its own, so that a run goes on eagerly.

Started by `package_builds.BuildProcess`, and by hand or in an image's build through `prebuild`. It
runs at the lowest priority and ends itself when the process that asked for it is gone.

    python -m qfleet.learner.fast.build_block --plan-json JSON --spec-json JSON
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from qfleet.common.errors import QfleetError
from qfleet.common.plan_json import plan_from_json
from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.package_cache import PackageCache, cache_directory
from qfleet.learner.fast.package_spec import PackageError, PackageSpec, missing_compiler
from qfleet.learner.fast.traced_block import build_package
from qfleet.learner.plan import LearnerPlan

LOWEST_PRIORITY = 19
_PARENT_POLL_S = 1.0


def prebuild(plan: LearnerPlan, spec: EnvironmentSpec, dtype: str = "float32") -> Path:
    """The package of this plan, compiled unless the cache has it; returns its path.

    Args:
        plan: Its `compile` is not looked at.
        spec: The environment's.
        dtype: Another precision than the learner's float32; for tests.

    Raises:
        PackageError: when there is no compiler or the block cannot be compiled.
        OSError: when the cache cannot be written.
        WaitTimeoutError: when another process compiles the same for too long.
    """
    missing = missing_compiler()
    if missing is not None:
        raise PackageError(f"{missing}; install g++ or name a compiler in CXX")
    package = PackageSpec(plan, spec, dtype)
    cast_to = None if dtype == "float32" else getattr(torch, dtype)
    rule, state, hyper = initial_block_inputs(plan, spec, "cpu", cast_to)

    def build(path: Path) -> None:
        # The compiler's intermediate files go with the package's temporary folder.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path.parent / "inductor")
        build_package(path, package, rule, state, hyper)

    description = package.describe(state.parameters, state.buffers)
    return PackageCache(cache_directory()).get_or_build(description, build)


def end_with_parent(parent_pid: int) -> None:
    """End this process and the compilers it started as soon as its parent is another one."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_PARENT_POLL_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    """Compile, print the package's path, return 0; a failure is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m qfleet.learner.fast.build_block")
    parser.add_argument("--plan-json", required=True, help="a LearnerPlan as JSON")
    parser.add_argument("--spec-json", required=True, help="an EnvironmentSpec as JSON")
    parser.add_argument("--parent-pid", type=int, help="end when this parent process ends")
    options = parser.parse_args(arguments)
    if options.parent_pid is not None:
        end_with_parent(options.parent_pid)
    os.nice(LOWEST_PRIORITY)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        plan = plan_from_json(LearnerPlan, options.plan_json)
        limit_threads(plan.num_cpus)
        print(prebuild(plan, EnvironmentSpec.from_json(options.spec_json)))
    except (PackageError, QfleetError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
