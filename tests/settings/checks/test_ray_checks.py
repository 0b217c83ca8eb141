"""Files that are to be shipped are looked for before any Ray is asked."""

from __future__ import annotations

import pytest

from qfleet.settings.config import Config
from qfleet.settings.config_checks import check_config


@pytest.mark.parametrize(
    ("ship", "found"),
    [
        (["my_env.py", "package", "wheel.whl", "s3://bucket/package.zip"], []),
        (["gone.py"], ["is not there"]),
        (["notes.txt", "gone.py"], ["is no .py, .whl file or folder", "is not there"]),
    ],
)
def test_shipped_file_that_cannot_be_sent_is_named(tmp_path, monkeypatch, ship, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    for name in ("my_env.py", "wheel.whl", "notes.txt"):
        (tmp_path / name).touch()
    config = Config.model_validate({"ray": {"ship": ship}})

    problems = check_config(config, None, cpus=2, gpus=0, memory_bytes=2**34, cuda_available=False)

    assert [problem.key for problem in problems] == ["ray.ship"] * len(found)
    for problem, words in zip(problems, found, strict=True):
        assert words in str(problem)
        assert str(tmp_path) in str(problem)
