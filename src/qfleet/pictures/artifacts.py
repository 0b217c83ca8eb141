"""What a run leaves for a person to look at: the play video and the learning curve.

Owned by the session; `train` begins them when the training ends. Neither decides the outcome: when
one fails, the run says so and ends as it would have.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qfleet.common.errors import QfleetError
from qfleet.pictures.film_process import FILM
from qfleet.pictures.learning_curve import plot_learning_curve

_END_TIMEOUT_S = 5.0


class Artifacts:
    """The video from a process of its own, the curve from a thread: two cores for a run's end.

    `prepare` as soon as there is something to film, `film` when the best parameters are final,
    `plot` when the last metrics row is written, then `wait`, which is also the end without the
    others. Each may be called twice. Owned by the driver's main thread.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._process: subprocess.Popen[str] | None = None
        self._is_filming = False
        self._thread: threading.Thread | None = None
        self._failures: list[str] = []

    def prepare(self) -> None:
        """Start the filming process: it loads its modules and waits, beside the training."""
        if self._process is not None:
            return
        search = [str(Path.cwd()) if path == "" else path for path in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qfleet.pictures.film_process", str(self._run_dir)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which ends this process itself
        )

    def film(self) -> None:
        """Begin the video of what stands in `best/` now."""
        self.prepare()
        if not self._is_filming:
            self._is_filming = True
            assert self._process is not None
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already: `wait` reads why
                self._process.stdin.write(f"{FILM}\n")
                self._process.stdin.flush()

    def plot(self) -> None:
        """Begin the learning curve, from what the metrics files hold now."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._plot, name="learning-curve", daemon=True)
            self._thread.start()

    def _plot(self) -> None:
        try:
            plot_learning_curve(self._run_dir)
        except (OSError, ValueError, QfleetError) as error:
            self._failures.append(f"no learning curve: {error}")

    def wait(self, incident: Callable[[str], None], timeout_s: float = 120.0) -> None:
        """Until what was begun is there, or `timeout_s`; failures are told to `incident`."""
        deadline_s = time.monotonic() + timeout_s
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._failures.append(f"no learning curve after {timeout_s:.0f} s")
        if self._process is not None:
            self._end(self._process, deadline_s)
        for failure in self._failures:
            incident(failure)

    def _end(self, process: subprocess.Popen[str], deadline_s: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if self._is_filming:
                code = process.wait(max(0.0, deadline_s - time.monotonic()))
                if code != 0:
                    reason = process.stdout.readline().strip() or f"exit code {code}"
                    self._failures.append(f"no play video: {reason}")
        except subprocess.TimeoutExpired:
            self._failures.append("no play video: it took too long")
        finally:
            process.kill()
            process.wait(_END_TIMEOUT_S)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
