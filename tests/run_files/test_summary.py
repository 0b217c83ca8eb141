"""summary.json's promised fields."""

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
    read_summary,
    write_summary,
)

PROMISED = [
    *("status", "exit_code", "resumable", "env_id", "preset", "runtime", "schedule", "seed"),
    *("solved", "solved_at_env_step", "eval_return_mean", "eval_return_std", "eval_episodes"),
    *("env_steps", "learner_steps", "target_syncs", "actors", "replay_shards", "startup_s"),
    *("train_s", "eval_s", "wall_s", "env_steps_per_s", "learner_steps_per_s"),
    *("samples_per_insert", "limited_by", "params_version", "params_sha256", "accounting"),
    *("shards", "slots"),
    *("device", "learner_path", "versions"),
]
OPTIONAL = [
    *("run_id", "run_dir", "resume_kind", "stop_reason"),
    *("role_restarts", "incidents", "failed_writes", "phases_s", "eval_seeds"),
    *("precision", "learner_path_reason", "budgets"),
    *("eval_cut_episodes", "max_episode_steps", "play"),
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
        *("produced", "resident", "evicted", "rejected", "dropped", "lost", "in_flight"),
        "at_least",
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


def test_accounting_balances_only_when_every_transition_is_counted_once() -> None:
    assert Accounting(
        produced=21, resident=1, evicted=2, rejected=3, dropped=4, lost=5, in_flight=6
    ).is_balanced
    assert not Accounting(produced=20, resident=10, evicted=9).is_balanced
