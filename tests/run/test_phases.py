"""Phases follow each other without gaps: their seconds add up to the time since the start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qfleet.run import phases as phases_module
from qfleet.run.phases import IMPORTS, PhaseClock, process_started_s

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


class Clock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def test_phases_keep_their_order_and_add_up() -> None:
    clock = Clock(12.0)
    phases = PhaseClock(10.0, clock)
    phases.enter("ray")
    clock.now_s = 13.5
    phases.enter("roles")
    clock.now_s = 13.75
    phases.enter("training")
    clock.now_s = 20.0

    assert phases.current == "training"
    assert phases.total_s == 10.0
    assert list(phases.seconds().items()) == [
        (IMPORTS, 2.0),
        ("ray", 1.5),
        ("roles", 0.25),
        ("training", 6.25),
    ]
    clock.now_s = 21.0
    assert phases.seconds()["training"] == 7.25
    assert sum(phases.seconds().values()) == 11.0


def test_phase_that_comes_again_is_added_to_and_keeps_its_place() -> None:
    clock = Clock(1.0)
    phases = PhaseClock(0.0, clock)
    for second, phase in enumerate(["roles", "training", "roles", "training"], start=2):
        phases.enter(phase)
        clock.now_s = float(second)

    assert list(phases.seconds().items()) == [(IMPORTS, 1.0), ("roles", 2.0), ("training", 2.0)]


def test_within_returns_to_the_former_phase_also_after_an_error() -> None:
    clock = Clock(1.0)
    phases = PhaseClock(0.0, clock)
    phases.enter("training")

    def evaluate() -> None:
        with phases.within("evaluation"):
            clock.now_s = 3.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    clock.now_s = 3.5

    assert phases.current == "training"
    assert phases.seconds() == {IMPORTS: 1.0, "training": 0.5, "evaluation": 2.0}


def test_process_started_lies_between_before_and_after_its_start() -> None:
    code = "from qfleet.run.phases import process_started_s; print(process_started_s())"
    tick_s = 1 / os.sysconf("SC_CLK_TCK")  # the kernel's resolution of a start
    before_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    after_s = time.monotonic()
    out, _ = process.communicate(timeout=60)

    assert before_s - 2 * tick_s <= float(out) <= after_s + 2 * tick_s
    assert process_started_s() < before_s


def test_architecture_page_explains_every_phase_in_order() -> None:
    names = [value for name, value in vars(phases_module).items() if name.isupper()]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| phase | from … to |")[2].partition("\n\n")[0]
    explained = [row.split("|")[1].strip(" `") for row in table.splitlines()[2:]]

    assert explained == names
