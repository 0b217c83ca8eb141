"""`qfleet report`: any runs beside each other, as a table or as a file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from qfleet.run_files.find_runs import find_run
from qfleet.studies.comparison import group_by_configuration
from qfleet.studies.readings import read_run
from qfleet.studies.report import Report
from qfleet.studies.words import Words


def main(args: argparse.Namespace) -> int:
    """Compare `args.runs`; those that differ only in their seeds are one arm."""
    words = Words(args.language)
    runs = [read_run(find_run(run)) for run in args.runs]
    environments = sorted({str(run.config.get("env.id")) for run in runs})
    command = shlex.join(["qfleet", "report", *args.runs])
    report = Report(group_by_configuration(runs), ", ".join(environments), words, command=command)
    if args.output is None:
        print(report.table())
        return 0
    report.write(Path(args.output))
    print(f"wrote {args.output}: {len(runs)} runs in {len(report.arms)} arms")
    return 0
