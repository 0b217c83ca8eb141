"""summary.json's promised fields, and the last block of `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qfleet.common.errors import ConfigError
from qfleet.run_files.summary import (
    Accounting,
    RunSummary,
    final_block,
    read_summary,
    write_summary,
)

PROMISED = [
    *("status", "exit_code", "resumable", "env_id", "preset", "runtime", "schedule", "seed"),
    *("solved", "solved_at_env_step", "eval_return_mean", "eval_return_std", "eval_episodes"),
    *("env_steps", "learner_steps", "target_syncs", "actors", "replay_shards", "startup_s"),
    *("train_s", "eval_s", "wall_s", "env_steps_per_s", "learner_steps_per_s"),
    *("samples_per_insert", "limited_by", "params_version", "params_sha256", "accounting"),
    *("device", "learner_path", "versions"),
]
OPTIONAL = [
    *("run_id", "run_dir", "resume_kind", "stop_reason"),
    *("role_restarts", "incidents", "phases_s"),
]


def make_summary(**changes: Any) -> RunSummary:
    fields: dict[str, Any] = {
        "status": "solved",
        "exit_code": 0,
        "resumable": True,
        "env_id": "CartPole-v1",
        "preset": "cartpole",
        "runtime": "ray",
        "schedule": "async",
        "seed": 1,
        "solved": True,
        "solved_at_env_step": 43210,
        "eval_return_mean": 499.25,
        "eval_return_std": 1.5,
        "eval_episodes": 100,
        "env_steps": 50000,
        "learner_steps": 10800,
        "target_syncs": 54,
        "actors": 2,
        "replay_shards": 1,
        "startup_s": 6.1,
        "train_s": 8.9,
        "eval_s": 3.2,
        "wall_s": 18.2,
        "env_steps_per_s": 5618.0,
        "learner_steps_per_s": 1213.4,
        "samples_per_insert": 16.0,
        "limited_by": "learning",
        "params_version": 216,
        "params_sha256": "0123456789abcdef" * 4,
        "accounting": Accounting(produced=10, resident=7, evicted=2, in_flight=1),
        "device": "cpu",
        "learner_path": "eager",
        "versions": {"python": "3.11.7"},
    }
    return RunSummary(**(fields | changes))


def test_summary_has_exactly_the_promised_fields_and_the_extras() -> None:
    assert list(RunSummary.model_fields) == PROMISED + OPTIONAL
    assert list(Accounting.model_fields) == [
        *("produced", "resident", "evicted", "rejected", "dropped", "lost", "in_flight")
    ]


def test_summary_round_trip_is_exact(tmp_path: Path) -> None:
    summary = make_summary(phases_s={"ray": 2.5})

    path = write_summary(summary, tmp_path)

    assert path == tmp_path / "summary.json"
    assert read_summary(tmp_path) == summary
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads(path.read_text())["accounting"]["resident"] == 7


def test_summary_not_finite_number_becomes_null_in_valid_json(tmp_path: Path) -> None:
    path = write_summary(make_summary(eval_return_mean=float("nan")), tmp_path)

    assert json.loads(path.read_text(), parse_constant=pytest.fail)["eval_return_mean"] is None


def test_summary_unknown_status_or_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="status"):
        make_summary(status="done")
    with pytest.raises(ValidationError, match="extra"):
        make_summary(score=1)


def test_read_summary_absent_is_none_and_damaged_is_named(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"status": "solved"}')

    with pytest.raises(ConfigError, match=r"summary\.json: exit_code: Field required"):
        read_summary(tmp_path)


def test_final_block_tells_the_phases_and_what_went_on_meanwhile(tmp_path: Path) -> None:
    def times(**changes: Any) -> str:
        lines = final_block(make_summary(**changes), tmp_path).splitlines()
        return next(line for line in lines if line.split()[0] == "time").split(maxsplit=1)[1]

    phases = {"imports": 0.31, "ray": 1.25, "training": 3.0}
    assert times(wall_s=4.56, eval_s=0.5, phases_s=phases) == (
        "4.6 s (imports 0.3, ray 1.2, training 3.0; evaluation 0.5 meanwhile)"
    )
    assert times(wall_s=4.56, eval_s=0.5, phases_s={**phases, "evaluation": 0.5}) == (
        "4.6 s (imports 0.3, ray 1.2, training 3.0, evaluation 0.5)"
    )


def test_accounting_balances_only_when_every_transition_is_counted_once() -> None:
    assert Accounting(
        produced=21, resident=1, evicted=2, rejected=3, dropped=4, lost=5, in_flight=6
    ).is_balanced
    assert not Accounting(produced=20, resident=10, evicted=9).is_balanced


def test_final_block_of_a_solved_run_is_as_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "my run"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    write_summary(make_summary(), run)

    block = final_block(make_summary(), run)

    assert block == (
        "Solved CartPole-v1: return 499.2 ± 1.5 over 100 fresh greedy episodes, "
        "at env step 43,210\n"
        "  time       18.2 s (startup 6.1, training 8.9, evaluation 3.2)\n"
        "  steps      50,000 env (5,618/s), 10,800 learner (1,213/s), 54 target syncs, "
        "16.0 samples per insert\n"
        "  limited by learning\n"
        "  best       runs/my run/best\n"
        "  parameters params_sha256 0123456789ab at the end\n"
        "  files      runs/my run: config.yaml, summary.json\n"
        "Next:\n"
        "  qfleet play 'runs/my run'\n"
        "  qfleet eval 'runs/my run'\n"
        "  tensorboard --logdir runs\n"
        "  qfleet train --resume 'runs/my run' --eval.stop_when_solved false"
    )


def test_final_block_of_an_unsolved_run_says_what_to_try(tmp_path: Path) -> None:
    summary = make_summary(
        status="finished",
        solved=False,
        solved_at_env_step=None,
        eval_return_mean=120.0,
        eval_return_std=None,
        stop_reason="run.max_env_steps reached",
        limited_by="environment",
    )

    lines = final_block(summary, tmp_path).splitlines()

    assert lines[0] == (
        "Finished CartPole-v1, not solved (run.max_env_steps reached): "
        "best so far return 120.0 over 100 fresh greedy episodes"
    )
    assert (
        "  try        more time (--run.max_env_steps 100000); another seed (--seed 2); "
        "more actors (--actors.count 3): the learner waited"
    ) in lines
    assert lines[-1] == f"  qfleet train --resume {tmp_path} --run.max_env_steps 100000"
    assert lines[-2] == f"  tensorboard --logdir {tmp_path}"
    assert not any("qfleet play" in line for line in lines)  # there is no best/ to play


def test_final_block_of_an_interrupted_run_ends_with_how_to_resume(tmp_path: Path) -> None:
    summary = make_summary(
        status="stopped", exit_code=130, solved=False, eval_return_mean=None, stop_reason="SIGINT"
    )

    lines = final_block(summary, tmp_path).splitlines()

    assert lines[0] == (
        "Stopped CartPole-v1, not solved (SIGINT): best so far unknown, nothing was evaluated"
    )
    assert lines[-1] == f"  qfleet train --resume {tmp_path}"


def test_final_block_of_a_failed_run_that_cannot_resume_offers_no_resume(tmp_path: Path) -> None:
    summary = make_summary(status="failed", exit_code=4, solved=False, resumable=False)

    block = final_block(summary, tmp_path)

    assert block.startswith("Failed on CartPole-v1")
    assert "--resume" not in block
    assert "  try " not in block


@pytest.mark.parametrize(
    ("reason", "flag"),
    [
        ("max_learner_steps", "--run.max_learner_steps 8000"),
        ("max_episodes", "--run.max_episodes 400"),
        ("max_wall_s", "--run.max_wall_s 120.0"),
    ],
)
def test_resume_line_raises_the_budget_that_ended_the_run(
    tmp_path: Path, reason: str, flag: str
) -> None:
    (tmp_path / "config.yaml").write_text(
        "run: {max_learner_steps: 4000, max_episodes: 200, max_wall_s: 60.0}"
    )
    summary = make_summary(status="finished", solved=False, stop_reason=reason)

    assert final_block(summary, tmp_path).splitlines()[-1].endswith(flag)
