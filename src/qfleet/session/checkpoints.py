"""When a checkpoint is due, and how one is committed; called by the session."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qfleet.common.capture_stream import Streams
from qfleet.run_files.checkpoint import PARAMS_FILE, SESSION_FILE
from qfleet.run_files.durable import DiskWatch
from qfleet.run_files.run_directory import RunDirectory
from qfleet.session.counters import Counters
from qfleet.settings.config import Config


@dataclass
class Checkpoints:
    """The checkpoints of a run: their period, their numbers, their failures."""

    config: Config
    directory: RunDirectory
    counters: Counters
    run_id: str
    session_state: Callable[[], dict[str, Any]]
    """The session's own state, for the cut."""
    watch: DiskWatch
    failures: int = 0
    is_saving: bool = False

    def __post_init__(self) -> None:
        self._last_s = self.counters.clock()

    def begin(self) -> None:
        """Training starts now: the period counts from here."""
        self._last_s = self.counters.clock()

    def due(self) -> bool:
        """Whether the checkpoint period has passed."""
        return self.counters.clock() - self._last_s >= self.config.run.checkpoint_period_s

    def save(self, files: Streams, params: bytes, learner_step: int) -> None:
        """Commit one cut of all roles; a failure is counted and shown, training goes on."""
        self._last_s = self.counters.clock()
        state = json.dumps(self.session_state()).encode()
        every = {**files, PARAMS_FILE: [params], SESSION_FILE: [state]}
        self.is_saving = True
        is_written = self.watch.attempt("the checkpoint", lambda: self._write(every, learner_step))
        self.is_saving = False
        self.failures += not is_written

    def _write(self, files: Streams, learner_step: int) -> None:
        self.directory.write_checkpoint(
            learner_step=learner_step,
            generation=self.directory.identity.next_generation(),
            files=files,
            manifest={
                "run_id": self.run_id,
                "env_steps": self.counters.env_steps,
                "schedule": self.config.effective_schedule,
                "compile": self.config.learner.compile,
                "replay": self.config.run.checkpoint_replay,
            },
            keep=self.config.run.keep_checkpoints,
        )
