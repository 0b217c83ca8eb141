"""Every sweep is a study, whose arms are checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.studies.definition import load_study

SWEEPS = sorted((Path(__file__).parents[2] / "benchmarks" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_arms_are_configurations(path: Path) -> None:
    study = load_study(str(path), {})

    assert len(study.arms) > 10
    assert study.config(next(iter(study.arms))).eval.stop_when_solved
