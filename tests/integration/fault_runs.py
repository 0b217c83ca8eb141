"""Real runs to inject faults into: started by the command line, watched by their console.

Used by test_ray_ends.py and by benchmarks/faults.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 300.0, 150.0
SMALL = {
    "actors.count": 2,
    "actors.envs_per_actor": 2,
    "network.hidden_sizes": 16,
    "replay.min_size_to_sample": 100,
    "learner.compile": "off",
    "eval.period_learner_steps": 200,
    "eval.episodes": 2,
    "eval.solved_at_return": 1000,
    "run.max_learner_steps": 10_000_000,
    "run.checkpoint_period_s": 2,
    "metrics.console": "json",
}
ENVIRONMENT = '''
import os, time
import gymnasium

class Env(gymnasium.Wrapper):
    """Hangs, or observes NaN, in one process once the file is there."""

    def step(self, action):
        here = os.path.dirname(os.path.abspath(__file__))
        result = self.env.step(action)
        for name in ("hang", "nan"):
            with __import__("contextlib").suppress(OSError):
                pid = open(os.path.join(here, name)).read()
                if pid in ("any", str(os.getpid())):
                    if name == "hang":
                        time.sleep(3600)
                    result = (result[0] * float("nan"), *result[1:])
        return result

def make(render_mode=None):
    return Env(gymnasium.make("CartPole-v1", render_mode=render_mode))
'''


class Run:
    """One `qfleet train` in a folder of its own; a context that leaves no process behind."""

    def __init__(
        self,
        *words: str,
        files: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        **changes: object,
    ) -> None:
        """`changes` are keys of the configuration, with `__` for the dot."""
        self._folder = tempfile.TemporaryDirectory(prefix="qf", dir="/tmp")
        self.folder = Path(self._folder.name)
        for name, text in {"fault_env.py": ENVIRONMENT, **(files or {})}.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        keys = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
        flags = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        variables = {**os.environ, **(environment or {}), "RAY_TMPDIR": str(self.folder)}
        variables["PYTHONPATH"] = str(ROOT / "src")
        variables.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qfleet", "train", *flags, "--run-dir", "run", *words],
            stdout=subprocess.PIPE,
            stderr=(self.folder / "stderr").open("w"),
            text=True,
            env=variables,
            cwd=self.folder,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.folder / "run"

    def wait_for(self, said: Callable[[dict[str, object]], bool], timeout_s: float) -> float:
        """Until the console says so, or the run ends; returns the seconds."""
        began_s = time.monotonic()
        while True:
            line = self._lines.get(timeout=max(0.0, began_s + timeout_s - time.monotonic()))
            if line is None or (line.startswith("{") and said(json.loads(line))):
                return time.monotonic() - began_s

    def says(self, pattern: str) -> float:
        """Seconds until the console shows that text; infinite when the run ends before."""
        took_s = self.wait_for(lambda e: bool(re.search(pattern, str(e))), ANSWER_TIMEOUT_S)
        return took_s if self.process.poll() is None else float("inf")

    def learns(self, step: int = 100) -> None:
        """Wait until the learner got that far and a checkpoint is there."""
        self.wait_for(lambda e: int(str(e.get("learner_steps", 0))) >= step, START_TIMEOUT_S)
        while not (self.directory / "latest").exists() and self.process.poll() is None:
            time.sleep(0.05)

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of a role or of one of Ray's services, the oldest first."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if name in " ".join(child.cmdline()[:1]):
                        found.append(child)
        return sorted(found, key=lambda process: process.pid)

    def role(self, name: str) -> psutil.Process:
        """The first of them, as soon as it is there."""
        ends_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends_s:
            for process in self.processes(name):
                return process
            time.sleep(0.02)
        raise TimeoutError(f"no process {name}")

    def ends(self, timeout_s: float = ANSWER_TIMEOUT_S) -> float:
        """Wait for the end of the run; returns the seconds."""
        began_s = time.monotonic()
        self.process.wait(timeout_s)
        return time.monotonic() - began_s

    def summary(self) -> dict[str, Any]:
        """What the run left as its summary; empty without one."""
        path = self.directory / "summary.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def exits(self, *codes: int, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[float, str]:
        """Seconds until the run has ended with one of these codes and a summary, and how."""
        took_s = self.ends(timeout_s)
        code = self.process.returncode
        has_summary = self.summary().get("exit_code") == code
        is_right = code in codes and (has_summary or code == 2)
        return (took_s if is_right else float("inf")), f"exit {code}" + ", summary" * has_summary
