"""An environment that writes down every step, and the books of a run held against what it wrote.

Observations carry stream, episode and step, so each transition in the replay names the line of the
ledger that it came from. Used by test_ray_ledger.py and benchmarks/faults.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qfleet.common.capture_stream import decode_capture

ENVIRONMENT = """
import os
import gymnasium
import numpy as np
from gymnasium import spaces


class Ledger(gymnasium.Env):
    observation_space = spaces.Box(-1e6, 1e6, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, folder):
        self.stream = 0
        while True:
            try:
                path = os.path.join(folder, f"{self.stream}")
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
                self.file = os.open(path, flags)
                break
            except FileExistsError:
                self.stream += 1
        os.write(self.file, f"{os.getpid()}\\n".encode())
        self.episode, self.steps = -1, 0

    def _observed(self):
        return np.array([self.stream, self.episode, self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observed(), {}

    def step(self, action):
        # Before anything is answered: the ledger knows each step that anybody could know of.
        os.write(self.file, f"{self.episode} {self.steps}\\n".encode())
        self.steps += 1
        return self._observed(), 1.0, self.steps >= 37, False, {}


def make(folder, render_mode=None):
    return Ledger(folder)
"""
Step = tuple[int, int, int]
"""Stream, episode, step."""


def settings(folder: Path) -> dict[str, object]:
    """Configuration keys under which every step of an actor, and no other, is a transition."""
    return {
        "env__factory": "ledger_env:make",
        "env__kwargs": {"folder": str(folder)},
        "replay__capacity": 200_000,
        "replay__samples_per_insert": 8.0,
        "actors__n_step": 1,  # each step is a transition at once
        "eval__period_learner_steps": 1_000_000,  # nobody plays but the actors
        "eval__solved_at_return": None,
    }


def played(folder: Path, others: Collection[int]) -> set[Step]:
    """What the actors played: every step but those of other processes (driver, evaluators)."""
    steps: list[Step] = []
    for path in folder.iterdir():
        pid, *lines = path.read_text().splitlines()
        if int(pid) not in others:
            steps += [(int(path.name), *_two(line)) for line in lines]
    assert len(steps) == len(set(steps))
    return set(steps)


def _two(line: str) -> tuple[int, int]:
    episode, step = line.split()
    return int(episode), int(step)


def remembered(run: Path) -> list[Step]:
    """The rows of every shard in the run's last checkpoint."""
    rows: list[Step] = []
    for path in sorted((run / "latest").glob("replay-*.qflt")):
        observations = decode_capture(path.read_bytes()).arrays["column.observation"]
        rows += [(int(a), int(b), int(c)) for a, b, c in observations]
    return rows


def unaccounted(accounts: Mapping[str, Any], run: Path, steps: set[Step]) -> tuple[int, int]:
    """(transitions that the books have wrong, played ones that only `at least` covers).

    Wrong are rows that nobody played, rows that are there twice, resident ones that are not there,
    sums that do not hold, more than was played, and less where the books do not say `at least`.
    """
    rows = remembered(run)
    parts = ("resident", "evicted", "rejected", "dropped", "lost", "in_flight")
    unknown = len(steps) - int(accounts["produced"])
    wrong = len(set(rows) - steps) + len(rows) - len(set(rows))
    wrong += abs(len(rows) - int(accounts["resident"]))
    wrong += abs(int(accounts["produced"]) - sum(int(accounts[part]) for part in parts))
    if unknown < 0 or "produced" not in accounts["at_least"]:
        wrong += abs(unknown)
    return wrong, max(0, unknown)
