"""Ends what a private Ray leaves behind, once the driver has ended: as a process of its own.

Started by `own_session.py` before Ray, with nothing but the standard library. Its input ends when
the driver ends, however that happens. Ray's own processes follow the driver at once, but its agents
look for their raylet only now and then, and nobody removes its files.
"""

import contextlib
import glob
import os
import shutil
import signal
import sys
import time

LOOK_S = 0.1
TIMEOUT_S = 10.0


def processes_of(sessions: set[int]) -> list[int]:
    """The ids of all processes in these sessions that are not dead yet."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) in sessions and state != "Z":
            found.append(int(name))
    return found


def kill_all(sessions: set[int]) -> None:
    """End every process in these sessions; what they start meanwhile too."""
    ends_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_s:
        alive = processes_of(sessions)
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(LOOK_S)


def main(place: str, pid: int, before: list[str]) -> None:
    """Read ids of sessions of processes until the driver `pid` ends, then clean up after it.

    Ray's directories are below `place`; those in `before` are not this Ray's.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kill_all({int(line) for line in sys.stdin})
    for folder in set(glob.glob(f"{place}/session_*_{pid}")) - set(before):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
