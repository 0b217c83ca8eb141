"""The last block that `train` prints: what came out, why it ended, and what to type next.

Called by `train` on every exit. Everything it proposes follows from the summary and the run's own
configuration; a run that was stopped or never started is told no other budget.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from qfleet.run.error_texts import ERRORS_DIRECTORY
from qfleet.run.phases import EVALUATION, TRAINING
from qfleet.run_files.find_runs import CONFIG_FILE, RUNS, SUMMARY_FILE, shorten
from qfleet.run_files.resume import load_saved_config
from qfleet.run_files.run_directory import LEARNING_CURVE_FILE
from qfleet.run_files.summary import RunSummary
from qfleet.session.bottleneck import ACTOR_STAGES
from qfleet.settings.trust import ALLOW_CODE, foreign_code

_LISTED_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "monitor.csv",
    "checkpoints",
    "videos",
    ERRORS_DIRECTORY,
    LEARNING_CURVE_FILE,
    SUMMARY_FILE,
)
_REASONS = {
    "solved": "the goal: an evaluation reached the threshold and was confirmed",
    "on_evaluation": "on_evaluation, which returned False",
}
"""Words for what is no budget, signal or error."""


def final_block(summary: RunSummary, run_dir: Path) -> str:
    """The last lines of `train`: outcome, times, steps, limits, files and what to type next."""
    run_dir = shorten(run_dir)
    rows = [
        ("time", _times(summary)),
        ("steps", _steps(summary)),
        *([("played", summary.play)] if summary.play else []),
        ("ended by", _ended_by(summary)),
        ("limited by", summary.limited_by),
        ("learner", _learner(summary)),
        ("best", _best(summary, run_dir)),
        ("parameters", f"params_sha256 {summary.params_sha256[:12] or 'unknown'} at the end"),
        ("files", _files(run_dir)),
        *_advice(summary),
    ]
    lines = [_outcome(summary), *(f"  {name:<11}{text}" for name, text in rows)]
    return "\n".join([*lines, "Next:", *(f"  {line}" for line in _next(summary, run_dir))])


def _outcome(summary: RunSummary) -> str:
    score = _score(summary)
    at = summary.solved_at_env_step
    solved = "" if at is None else f", at env step {at:,}"
    if summary.status == "solved":
        return f"Solved {summary.env_id}: {score}{solved}"
    verb = {"failed": "Failed on", "stopped": "Stopped"}.get(summary.status, "Finished")
    if summary.solved:
        return f"{verb} {summary.env_id}, solved{solved}: {score}"
    return f"{verb} {summary.env_id}, not solved: best so far {score}"


def _score(summary: RunSummary) -> str:
    if summary.eval_return_mean is None:
        return "unknown, nothing was evaluated"
    spread = "" if summary.eval_return_std is None else f" ± {summary.eval_return_std:.1f}"
    over = f"{summary.eval_episodes} {'' if _is_selection(summary) else 'fresh '}greedy episodes"
    cut = summary.eval_cut_episodes
    remark = f", {cut} of them cut at {summary.max_episode_steps:,} steps" if cut else ""
    remark += ", by which it was chosen" if _is_selection(summary) else ""
    return f"return {summary.eval_return_mean:.1f}{spread} over {over}{remark}"


def _is_selection(summary: RunSummary) -> bool:
    return summary.eval_seeds == "selection"


def _ended_by(summary: RunSummary) -> str:
    """The reason, and beside a budget what is left of the others."""
    reason = (summary.stop_reason or "unknown").partition("\n")[0]
    spent = summary.budgets.get(reason)
    if spent is None:
        return _REASONS.get(reason, reason)
    used = {"max_env_steps": summary.env_steps, "max_learner_steps": summary.learner_steps}
    others = [
        f"run.{name} at {used[name]:,} of {limit:,g}"
        for name, limit in summary.budgets.items()
        if name != reason and name in used
    ]
    rest = f"; {', '.join(others)}" if others else ""
    return f"run.{reason} = {spent:,g}{rest}"


def _learner(summary: RunSummary) -> str:
    reason = summary.learner_path_reason
    path = f"{summary.learner_path} ({reason})" if reason else summary.learner_path
    return f"{path}, bfloat16" if summary.precision == "bfloat16" else path


def _times(summary: RunSummary) -> str:
    phases = summary.phases_s or {
        "startup": summary.startup_s,
        TRAINING: summary.train_s,
        EVALUATION: summary.eval_s,
    }
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    # An asynchronous run evaluates while it trains: no phase of its own.
    beside = f"; evaluation {summary.eval_s:.1f} meanwhile" if EVALUATION not in phases else ""
    return f"{summary.wall_s:.1f} s ({parts}{beside})"


def _steps(summary: RunSummary) -> str:
    per_insert = summary.samples_per_insert
    ratio = "" if per_insert is None else f", {per_insert:.1f} samples per insert"
    return (
        f"{summary.env_steps:,} env ({summary.env_steps_per_s:,.0f}/s), "
        f"{summary.learner_steps:,} learner ({summary.learner_steps_per_s:,.0f}/s), "
        f"{summary.target_syncs:,} target syncs{ratio}"
    )


def _best(summary: RunSummary, run_dir: Path) -> str:
    if not (run_dir / "best").is_dir():
        return "none: no evaluation ended"
    return str(run_dir / "best")


def _files(run_dir: Path) -> str:
    present = [name for name in _LISTED_FILES if (run_dir / name).exists()]
    return f"{run_dir}: {', '.join(present)}"


def _advice(summary: RunSummary) -> list[tuple[str, str]]:
    """What to try when a run ended unsolved by itself."""
    if summary.solved or summary.status != "finished":
        return []
    tries = [f"another seed (--seed {summary.seed + 1})"]
    more = _larger_budget(summary)
    if more:
        tries.insert(0, f"more time ({more})")
    if summary.limited_by in ACTOR_STAGES:
        tries.append(f"more actors (--actors.count {summary.actors + 1}): the learner waited")
    return [("try", "; ".join(tries))]


def _next(summary: RunSummary, run_dir: Path) -> list[str]:
    """Commands with the real path; how to resume stands last."""
    run = shlex.quote(str(run_dir))
    code = f" {ALLOW_CODE}" if _names_foreign_code(run_dir) else ""
    # All default runs in one view; the neighbours of a directory elsewhere may be anything.
    logs = shlex.quote(str(run_dir.parent)) if run_dir.parent.name == RUNS.name else run
    lines = []
    if (run_dir / "best").is_dir():
        lines += [f"qfleet play {run}{code}", f"qfleet eval {run}{code}"]
    lines.append(f"tensorboard --logdir {logs}")
    if summary.resumable:
        flags = [f"--resume {run}{code}"]
        if summary.status in ("solved", "finished"):
            flags += [_larger_budget(summary)]
            flags += ["--eval.stop_when_solved false"] if summary.solved else []
        lines.append(f"qfleet train {' '.join(flag for flag in flags if flag)}")
    return lines


def _larger_budget(summary: RunSummary) -> str:
    """The flag with which a run goes on whose budget is spent: twice what was in force."""
    spent = summary.budgets.get(summary.stop_reason or "")
    return "" if spent is None else f"--run.{summary.stop_reason} {2 * spent:.15g}"


def _names_foreign_code(run_dir: Path) -> bool:
    """Whether loading the run's files needs the user's word: their code is not installed."""
    return (run_dir / CONFIG_FILE).is_file() and bool(foreign_code(load_saved_config(run_dir)))
