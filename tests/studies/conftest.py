"""Run directories written by hand, as a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qfleet.run_files.metrics import MetricsWriter

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        name: str,
        *,
        seed: int = 1,
        evaluations: tuple[tuple[int, float], ...] = ((100, 20.0), (200, 480.0)),
        lengths: tuple[int, ...] = (10, 30),
        learner: dict[str, Any] | None = None,
        env_id: str = "CartPole-v1",
        **summary: Any,
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        config = {
            "preset": "cartpole",
            "seed": seed,
            "env": {"id": env_id},
            "learner": {"batch_size": 32, **(learner or {})},
            "eval": {"solved_at_return": "auto"},
            "run": {"dir": str(path)},
        }
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        writer = MetricsWriter(path, env_id="CartPole-v1", t_start_s=0.0, tensorboard=False)
        for length in lengths:
            writer.write_episode(float(length), length, 0.0)
        for steps, value in evaluations:
            row = {"eval/return_mean": value, "learner/q_mean": value / 10, "learner/loss": 1.0}
            writer.write(
                row | {"learner/grad_norm": 2.0},
                env_steps=steps // 2,
                learner_steps=steps,
                wall_s=0.0,
            )
        writer.close()
        last = evaluations[-1] if evaluations else (0, None)
        about = {
            "status": "finished",
            "exit_code": 0,
            "seed": seed,
            "solved": False,
            "eval_return_mean": last[1],
            "learner_steps": last[0],
            "env_steps": last[0] // 2,
            "train_s": 3.0,
            "runtime": "local",
            "device": "cpu",
            "learner_path": "eager",
            "versions": {"python": "3.11"},
            **summary,
        }
        (path / "summary.json").write_text(json.dumps(about))
        return path

    return make
