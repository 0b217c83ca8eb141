"""docs/extending.md: what it adds, added to a copy of the tree, passes its own test there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_member_is_one_file_one_name_and_one_test(tmp_path: Path) -> None:
    loss, name, test = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
    )
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src" / "qfleet"
    (package / "learner" / "losses" / "log_cosh.py").write_text(loss)
    config = package / "common" / "config.py"
    text, n = re.subn(r"LossName = Literal\[.*?\]\n", lambda _: name, config.read_text())
    assert n == 1
    config.write_text(text)
    (tmp_path / "test_loss_log_cosh.py").write_text(test)

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    ran = subprocess.run(
        [*command, "test_loss_log_cosh.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout
