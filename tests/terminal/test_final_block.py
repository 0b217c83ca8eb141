"""The last block of `train`: what came out, why it ended, and commands that are true."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from qfleet.run_files.summary import Accounting, RunSummary, write_summary
from qfleet.terminal.final_block import final_block


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


def test_final_block_of_a_solved_run_is_as_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "my run"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1")
    write_summary(make_summary(), run)

    block = final_block(make_summary(stop_reason="solved", learner_path_reason="no package"), run)

    assert block == (
        "Solved CartPole-v1: return 499.2 ± 1.5 over 100 fresh greedy episodes, "
        "at env step 43,210\n"
        "  time       18.2 s (startup 6.1, training 8.9, evaluation 3.2)\n"
        "  steps      50,000 env (5,618/s), 10,800 learner (1,213/s), 54 target syncs, "
        "16.0 samples per insert\n"
        "  ended by   the goal: an evaluation reached the threshold and was confirmed\n"
        "  limited by learning\n"
        "  learner    eager (no package)\n"
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
        stop_reason="max_env_steps",
        budgets={"max_env_steps": 50000.0},
        limited_by="environment",
    )

    lines = final_block(summary, tmp_path).splitlines()

    assert lines[0] == (
        "Finished CartPole-v1, not solved: best so far return 120.0 over 100 fresh greedy episodes"
    )
    assert "  ended by   run.max_env_steps = 50,000" in lines
    assert (
        "  try        more time (--run.max_env_steps 100000); another seed (--seed 2); "
        "more actors (--actors.count 3): the learner waited"
    ) in lines
    assert lines[-1] == f"  qfleet train --resume {tmp_path} --run.max_env_steps 100000"
    assert lines[-2] == f"  tensorboard --logdir {tmp_path}"
    assert not any("qfleet play" in line for line in lines)  # there is no best/ to play


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (
            {"eval_return_mean": None},
            "Stopped CartPole-v1, not solved: best so far unknown, nothing was evaluated",
        ),
        (
            {"eval_return_mean": 500.0, "eval_episodes": 20, "eval_seeds": "selection"},
            "Stopped CartPole-v1, not solved: best so far return 500.0 ± 1.5 over 20 greedy "
            "episodes, by which it was chosen",
        ),
        (
            {"solved": True, "solved_at_env_step": 1600, "eval_seeds": "fresh"},
            "Stopped CartPole-v1, solved, at env step 1,600: return 499.2 ± 1.5 over 100 fresh "
            "greedy episodes",
        ),
    ],
)
def test_final_block_of_an_interrupted_run_ends_with_how_to_resume_and_names_no_budget(
    tmp_path: Path, changes: dict[str, Any], first: str
) -> None:
    """Twice the steps so far were less than the run's own budget, and shortened it."""
    stopped = {"status": "stopped", "exit_code": 130, "stop_reason": "SIGINT"}
    unsolved = {"solved": False, "solved_at_env_step": None}
    summary = make_summary(**{**stopped, **unsolved, "budgets": {"max_env_steps": 1e6}, **changes})

    lines = final_block(summary, tmp_path).splitlines()

    assert lines[0] == first
    assert "  ended by   SIGINT" in lines
    assert lines[-1] == f"  qfleet train --resume {tmp_path}"
    assert not any(" try " in line or "--run." in line for line in lines)


def test_final_block_of_a_run_that_never_started_names_no_budget(tmp_path: Path) -> None:
    summary = make_summary(
        status="failed",
        exit_code=5,
        solved=False,
        resumable=False,
        env_steps=0,
        stop_reason="the learner died\nwith a long text",
        budgets={"max_env_steps": 1e6},
    )

    lines = final_block(summary, tmp_path).splitlines()

    assert lines[0].startswith("Failed on CartPole-v1, not solved")
    assert "  ended by   the learner died" in lines
    assert lines[-1] == f"  tensorboard --logdir {tmp_path}"
    assert not any("--resume" in line or " try " in line or "--run." in line for line in lines)


def test_ended_by_names_the_budget_and_what_is_left_of_the_others(tmp_path: Path) -> None:
    summary = make_summary(
        status="finished",
        solved=False,
        env_steps=243_200,
        stop_reason="max_learner_steps",
        budgets={"max_env_steps": 300_000.0, "max_learner_steps": 60_000.0, "max_wall_s": 90.0},
    )

    lines = final_block(summary, tmp_path).splitlines()

    assert (
        "  ended by   run.max_learner_steps = 60,000; run.max_env_steps at 243,200 of 300,000"
    ) in lines


@pytest.mark.parametrize(
    ("reason", "flag"),
    [
        ("max_learner_steps", " --run.max_learner_steps 8000"),
        ("max_episodes", " --run.max_episodes 400"),
        ("max_wall_s", " --run.max_wall_s 121"),
        ("on_evaluation", ""),
    ],
)
def test_resume_line_raises_the_budget_in_force_that_ended_the_run(
    tmp_path: Path, reason: str, flag: str
) -> None:
    (tmp_path / "config.yaml").write_text("run: {max_learner_steps: 7}")  # of the first start
    budgets = {"max_learner_steps": 4000.0, "max_episodes": 200.0, "max_wall_s": 60.5}
    summary = make_summary(status="finished", solved=False, stop_reason=reason, budgets=budgets)

    assert final_block(summary, tmp_path).splitlines()[-1] == (
        f"  qfleet train --resume {tmp_path}{flag}"
    )


def test_hints_carry_allow_code_where_the_runs_code_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training process has imported it already; the commands proposed have not."""
    monkeypatch.setitem(sys.modules, "my_env", type(sys)("my_env"))
    (tmp_path / "best").mkdir()
    for factory, flag in (("my_env:make", " --allow-code"), ("gymnasium:make", "")):
        (tmp_path / "config.yaml").write_text(f"env: {{factory: '{factory}'}}")

        lines = final_block(make_summary(solved=False, status="stopped"), tmp_path).splitlines()

        assert lines[-4:] == [
            f"  qfleet play {tmp_path}{flag}",
            f"  qfleet eval {tmp_path}{flag}",
            f"  tensorboard --logdir {tmp_path}",
            f"  qfleet train --resume {tmp_path}{flag}",
        ]
