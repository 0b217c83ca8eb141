"""The command line as a process of its own: what `qfleet` and `python -m qfleet` start."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn

from qfleet.command_line.cli import main


def run() -> NoReturn:
    """Run the command in `sys.argv` and end the process with its exit code."""
    code = main()
    if _is_watched() or _has_other_threads():
        sys.exit(code)
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End this process without taking the interpreter and its libraries apart.

    That would take half a second after torch was used, to give back memory piece by piece which
    the system takes back at once. What asked to be called at exit is called.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader left, or it is closed
            stream.flush()
    os._exit(code)


def _is_watched() -> bool:
    """A profiler or a debugger wants to see the end, and to write down what it saw."""
    return sys.getprofile() is not None or sys.gettrace() is not None


def _has_other_threads() -> bool:
    """Threads that the interpreter waits for, started by an environment for instance."""
    others = set(threading.enumerate()) - {threading.main_thread()}
    return any(not thread.daemon for thread in others)
