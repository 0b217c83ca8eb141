"""Compiles presets' learner blocks ahead of their first run: for set-up steps and images.

    python -m qfleet.prebuild cartpole tutorial-state

A package fits one kind of CPU: build it where it will run, or on the same model. Runs with
`learner.compile: auto` then start with it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from qfleet.common.envs import describe_environment
from qfleet.common.errors import ConfigError, QfleetError
from qfleet.common.plan_json import plan_to_json
from qfleet.settings import presets
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import Config
from qfleet.settings.plans import run_plans


def prebuild_preset(name: str) -> int:
    """Compile one preset's block in a process of its own; 0 when the cache has it afterwards.

    Raises:
        QfleetError: when there is no such preset or its environment cannot be made.
    """
    config = Config.preset(name)
    if not config.network.is_compiled_on_cpu:
        raise ConfigError(
            f"preset {name}: network.kind {config.network.kind} is not compiled on a CPU, where "
            "convolutions take the time; there is nothing to build"
        )
    spec = describe_environment(config.env)
    config = resolve_config(config, spec, cpus=os.cpu_count() or 1, gpus=0)
    command = [sys.executable, "-m", "qfleet.learner.fast.build_block"]
    command += ["--plan-json", plan_to_json(run_plans(config).learner)]
    command += ["--spec-json", spec.to_json()]
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Every preset named, one after the other; 1 when one failed, with its message."""
    parser = argparse.ArgumentParser(prog="python -m qfleet.prebuild")
    parser.add_argument("presets", nargs="*", default=[presets.DEFAULT], metavar="PRESET")
    failed = 0
    for name in parser.parse_args(arguments).presets:
        try:
            failed |= prebuild_preset(name)
        except QfleetError as error:
            print(f"qfleet: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
