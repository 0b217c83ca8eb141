"""`qfleet scale RUN --actors N`: more or fewer actors in a run that goes on."""

from __future__ import annotations

import argparse
import shlex
import socket
import time
from pathlib import Path

from qfleet.common.errors import ConfigError
from qfleet.run_files.find_runs import find_run
from qfleet.run_files.live.scale_request import (
    is_scale_request_open,
    withdraw_scale_request,
    write_scale_request,
)
from qfleet.run_files.resume import load_saved_config
from qfleet.run_files.run_lock import LockOwner, live_owner

TAKEN_TIMEOUT_S = 20.0
"""A driver looks four times a second; one that starts its roles takes longer."""


def main(args: argparse.Namespace) -> int:
    """Ask the run's driver for `args.actors` actors and wait until it has taken the request.

    Raises:
        ConfigError: when the run is not alive, cannot be scaled, or its driver does not answer.
    """
    run = find_run(args.run)
    owner = live_owner(run)
    if owner is None:
        raise ConfigError(
            f"{run} is not alive, so there is nothing to scale (RUN): go on with it as "
            f"`qfleet train --resume {shlex.quote(str(run))} --actors.count {args.actors}`"
        )
    _check_scalable(run, args.actors)
    write_scale_request(run, args.actors)
    _await_driver(run, owner)
    print(f"{run}: {args.actors} actors are wanted now; `qfleet status {run}` shows them")
    return 0


def _check_scalable(run: Path, actors: int) -> None:
    config = load_saved_config(run)
    if config.effective_schedule == "lockstep":
        raise ConfigError(
            f"{run} runs in lockstep, whose actors are part of its bits (run.schedule): only an "
            "asynchronous run can be scaled"
        )
    least = config.actors.min_count
    if actors < least:
        raise ConfigError(
            f"--actors must be at least {least} here, got {actors}: a run keeps at least "
            "actors.min_count actors"
        )


def _await_driver(run: Path, owner: LockOwner) -> None:
    ends_s = time.monotonic() + TAKEN_TIMEOUT_S
    while is_scale_request_open(run):
        if live_owner(run) is None:
            withdraw_scale_request(run)
            raise ConfigError(f"{run} has just ended: there is nothing to scale any more (RUN)")
        if time.monotonic() > ends_s:
            withdraw_scale_request(run)
            elsewhere = owner.host != socket.gethostname()
            raise ConfigError(
                f"process {owner.pid} on {owner.host}, which drives {run}, has not taken the "
                f"request for {TAKEN_TIMEOUT_S:.0f} s: "
                + (
                    f"run the command on {owner.host}, where the directory is written"
                    if elsewhere
                    else "its roles may still be starting (`qfleet status`); try again"
                )
            )
        time.sleep(0.1)
