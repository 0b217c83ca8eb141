"""`qfleet train` as a process of its own, timed from outside, for programs that compare runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0
NEVER = "1000000000"


def run(flags: Mapping[str, object], *, empty_cache: bool = False) -> tuple[float, dict[str, Any]]:
    """(seconds from start to exit, summary) of the default preset, without evaluations.

    Raises:
        SystemExit: when it fails, has an incident or does not make all of its updates.
    """
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        flags = {"eval.period_learner_steps": NEVER, **flags, "run-dir": f"{folder}/run"}
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        cache = {"QFLEET_CACHE": f"{folder}/cache"} if empty_cache else {}
        started_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "qfleet", "train", "cartpole", *words],
            env={**os.environ, **cache},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        seconds = time.perf_counter() - started_s
        path = Path(folder, "run", "summary.json")
        summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    is_whole = summary.get("learner_steps") == int(str(flags["run.max_learner_steps"]))
    if done.returncode or not is_whole or summary["incidents"]:
        raise SystemExit(f"{' '.join(words)}: {summary}\n{done.stderr[-2000:]}")
    return seconds, summary
