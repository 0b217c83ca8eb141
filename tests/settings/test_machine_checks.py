"""What is found out about the machine without asking torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.settings.checks import machine_checks
from qfleet.settings.checks.machine_checks import nvidia_gpus


@pytest.mark.parametrize(
    ("visible", "present", "tool", "expected"),
    [
        (None, 0, False, 0),
        (None, 2, False, 2),
        (None, 0, True, 1),
        ("", 2, True, 0),
        ("-1", 2, True, 0),
        ("1", 2, True, 1),
        ("0,1,2", 2, True, 2),
    ],
)
def test_nvidia_gpus_table(monkeypatch, visible, present, tool, expected):
    devices = [Path(f"/dev/nvidia{i}") for i in range(present)]
    monkeypatch.setattr(machine_checks.Path, "glob", lambda self, pattern: iter(devices))
    monkeypatch.setattr(machine_checks.shutil, "which", lambda name: "found" if tool else None)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert nvidia_gpus() == expected
