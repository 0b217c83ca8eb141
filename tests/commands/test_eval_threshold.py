"""`qfleet eval` holds the score against the threshold that the run itself had."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.command_line import cli
from qfleet.settings.config_loading import load_config
from qfleet.training import train


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (5.0, "the run's own threshold of 5 is reached"),
        (499.5, "the run's own threshold of 499.5 is not reached"),
        ("auto", "the registered threshold of 475 is not reached"),
        (None, ""),
    ],
)
def test_eval_uses_the_threshold_of_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: object,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "runtime": "local",
        "actors.count": 1,
        "learner.compile": "off",
        "metrics.console": "none",
        "replay.min_size_to_sample": 100,
        "eval.period_learner_steps": 50,
        "eval.episodes": 1,
        "eval.confirm_episodes": 1,
        "eval.solved_at_return": wanted,
        "run.max_learner_steps": 50,
    }
    train(load_config("cartpole", [], small), run_dir="run")

    assert cli.main(["eval", "run", "--episodes", "2", "--seed", "1"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert (lines[2] if len(lines) > 2 else "") == said
