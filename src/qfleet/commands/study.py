"""`qfleet study`: the same program with one thing changed, over several seeds, with its report."""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path
from types import FrameType

from qfleet.run.stop_signals import heard_signals
from qfleet.settings.problems import show_value
from qfleet.studies.definition import Study, in_language, load_study
from qfleet.studies.report import Report
from qfleet.studies.runner import Cell, Grid, arms_of, workers
from qfleet.studies.study_forecast import forecast
from qfleet.studies.words import Words
from qfleet.terminal.console import duration

REPORT_FILE = "report.html"
LONG_S = 180.0


def main(args: argparse.Namespace) -> int:
    """Run what is missing of the study `args.name` and write its report after every run."""
    words = Words(args.language)
    changes = {"seeds": args.seeds, "preset": args.preset}
    study = load_study(args.name, {k: v for k, v in changes.items() if v is not None})
    folder = Path(args.out or f"runs/study-{study.name}")
    at_once = args.jobs or workers(study)
    grid = Grid(study, folder, at_once)
    wanted = len(study.arms) * study.seeds
    print(
        f"study {study.name}: {len(study.arms)} arms × {study.seeds} seeds of preset "
        f"'{study.preset}', {wanted - len(grid.waiting)} of {wanted} runs are there, "
        f"{at_once} at a time · {folder}",
        flush=True,
    )

    def write() -> Report:
        report = Report(
            arms_of(study, folder, args.language),
            in_language(study.title, args.language),
            words,
            in_language(study.question, args.language),
            command_line(args),
            wanted,
            base_changes(study, words),
        )
        report.write(folder / REPORT_FILE)
        return report

    def after_each(cell: Cell) -> None:
        write()
        state = "complete" if cell.is_complete else f"failed, see {cell.path}.log"
        print(f"  {cell.arm}, seed {cell.seed}: {state}", flush=True)

    for number in heard_signals():
        signal.signal(number, _stop)
    try:
        _say_forecast(study, grid, args.name)
        grid.run(after_each)
    except KeyboardInterrupt as stopped:
        with contextlib.suppress(OSError):  # after a hangup nobody may be there to read it
            print(f"stopped; the same command goes on from here: {command_line(args)}", flush=True)
        (number,) = stopped.args
        return 128 + int(number)
    report = write()
    print(report.table())
    print(f"Report: {folder / REPORT_FILE}")
    return 5 if any(arm.failed for arm in report.arms) else 0


def base_changes(study: Study, words: Words) -> tuple[str, ...]:
    """A sentence on what all arms change in the study's preset; none when they change nothing."""
    if not study.overrides:
        return ()
    settings = ", ".join(f"{key} {show_value(value)}" for key, value in study.overrides.items())
    return (words("base_changes", preset=study.preset, settings=settings),)


def _stop(number: int, frame: FrameType | None) -> None:
    """The runs end with a checkpoint; the exit code says which signal it was, as elsewhere."""
    raise KeyboardInterrupt(number)


def command_line(args: argparse.Namespace) -> str:
    """Repeats or continues the study."""
    flags = {"seeds": args.seeds, "preset": args.preset, "out": args.out, "jobs": args.jobs}
    words = ["qfleet study", args.name]
    words += [f"--{name} {value}" for name, value in flags.items() if value is not None]
    return " ".join(words + ([f"--language {args.language}"] if args.language != "en" else []))


def _say_forecast(study: Study, grid: Grid, name: str) -> None:
    seconds, reason = forecast(study, grid.waiting, grid.at_once)
    if seconds is None:
        print(f"forecast: unknown, {reason}", flush=True)
    elif seconds > LONG_S and study.seeds > 1:
        print(
            f"forecast: about {duration(seconds)}; for a first look `qfleet study {name} "
            "--seeds 1`, and the same command with more seeds goes on from there",
            flush=True,
        )
    elif seconds:
        print(f"forecast: about {duration(seconds)}", flush=True)
