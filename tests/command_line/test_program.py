"""How the process of a command ends: at once, with its exit code, its output and its promises."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

TAKEN_APART = """
import os
class TakenApart:
    def __del__(self, write=os.write):
        write(1, b"taken apart")
keep = TakenApart()
"""
"""Says so when the interpreter tears down its modules, which `os._exit` does not."""


def run_program(prelude: str, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"{textwrap.dedent(prelude)}\nimport sys\nsys.argv[1:] = {list(words)!r}\n"
    return subprocess.run(
        [sys.executable, "-c", f"{code}from qfleet.command_line.program import run\nrun()"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=60,
    )


def test_program_prints_everything_and_keeps_the_exit_code() -> None:
    shown = run_program(TAKEN_APART, "--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("qfleet ")
    assert "taken apart" not in shown.stdout

    refused = run_program(TAKEN_APART, "trane")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "there is no command trane" in refused.stderr


def test_program_calls_what_asked_to_be_called_at_exit() -> None:
    done = run_program("import atexit; atexit.register(print, 'at exit')", "--version")

    assert done.stdout.splitlines()[-1] == "at exit"


@pytest.mark.parametrize(
    "watcher",
    [
        "import threading; threading.Thread(target=threading.Event().wait, args=(0.1,)).start()",
        "import sys; sys.setprofile(lambda *_: None)",
        "import sys; sys.settrace(lambda *_: None)",
    ],
)
def test_program_with_someone_to_wait_for_ends_the_ordinary_way(watcher: str) -> None:
    done = run_program(f"{watcher}\n{TAKEN_APART}", "--version")

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "taken apart"


def test_program_whose_reader_left_ends_quietly() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help-all'];"
        "from qfleet.command_line.program import run; run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()

    assert errors == ""
