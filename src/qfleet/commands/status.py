"""`qfleet status [RUN]`: how a run stands, from its files alone; nothing is contacted."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from qfleet.run_files.checkpoint import list_checkpoints
from qfleet.run_files.find_runs import find_run
from qfleet.run_files.metrics import (
    EVAL_RETURN_MEAN,
    METRICS_FILE,
    ROLLOUT_RETURN_MEAN,
    TIME_WALL_S,
    read_metrics,
)
from qfleet.run_files.run_lock import live_owner
from qfleet.run_files.summary import FleetTables, RunSummary, read_fleet_tables, read_summary
from qfleet.terminal.console import duration


def main(args: argparse.Namespace) -> int:
    """Print how `args.run` stands, as JSON when `args.json` is set.

    Returns:
        The exit code, 0; a run that does not exist raises `ConfigError`.
    """
    status = run_status(find_run(args.run), now_s=time.time())
    print(json.dumps(status, indent=2) if getattr(args, "json", False) else status_text(status))
    return 0


def run_status(run_dir: Path, *, now_s: float) -> dict[str, Any]:
    """The state of a run, JSON-able.

    `state` is `running`, the summary's status, or `ended without a summary` (killed, or never
    started). `now_s` is seconds since the epoch: file times are the only clock shared with a run on
    another host.
    """
    owner = live_owner(run_dir)
    summary = read_summary(run_dir)
    rows = read_metrics(run_dir)
    last = rows[-1] if rows else {}
    if owner is not None:
        state = "running"
    elif summary is None:
        state = "ended without a summary"
    else:  # the summary counts the steps after the last row as well
        state = summary.status
        last = {**last, "env_steps": summary.env_steps, "learner_steps": summary.learner_steps}
    tables = read_fleet_tables(run_dir) if owner is not None or summary is None else summary
    return {
        "run_dir": str(run_dir),
        "state": state,
        "host": owner.host if owner else None,
        "pid": owner.pid if owner else None,
        "env_steps": last.get("env_steps", 0),
        "learner_steps": last.get("learner_steps", 0),
        "wall_s": last.get("wall_s", last.get(TIME_WALL_S, 0.0)),
        "rollout_return_mean": _newest(rows, ROLLOUT_RETURN_MEAN),
        "eval_return_mean": _newest(rows, EVAL_RETURN_MEAN),
        "last_row_age_s": _age_s(run_dir / METRICS_FILE, now_s),
        **_checkpoint_state(run_dir, now_s),
        "shards": [row.model_dump() for row in tables.shards],
        "slots": [row.model_dump() for row in tables.slots],
        "roles": _roles(tables) if owner is not None else [],
        "solved": summary.solved if summary and owner is None else None,
        "exit_code": summary.exit_code if summary and owner is None else None,
        "resumable": summary.resumable if summary and owner is None else None,
    }


def status_text(status: dict[str, Any]) -> str:
    """The state as aligned lines; what is unknown is left out."""
    where = f" (process {status['pid']} on {status['host']})" if status["pid"] else ""
    shown = {
        "run": status["run_dir"],
        "state": f"{status['state']}{where}",
        "env steps": f"{status['env_steps']:,}",
        "learner steps": f"{status['learner_steps']:,}",
        "trained for": duration(status["wall_s"]),
        "rollout return": _number(status["rollout_return_mean"]),
        "evaluation return": _number(status["eval_return_mean"]),
        **{f"shard {i}": _shard_text(row) for i, row in enumerate(status["shards"])},
        **{f"actor {row['slot']}": _slot_text(row) for row in status["slots"]},
        **{row["role"]: _role_text(row) for row in status["roles"]},
        "last metrics": _ago(status["last_row_age_s"]),
        "last checkpoint": _checkpoint_text(status),
        "solved": {True: "yes", False: "no", None: None}[status["solved"]],
        "exit code": status["exit_code"],
    }
    return "\n".join(f"{name:<18} {value}" for name, value in shown.items() if value is not None)


def _shard_text(row: dict[str, Any]) -> str:
    return (
        f"{row['inserted']:,} inserted, {row['sampled']:,} sampled, {row['resident']:,} resident, "
        f"held back for {row['held_s']:.1f} s"
    )


def _slot_text(row: dict[str, Any]) -> str:
    return (
        f"{row['env_steps']:,} env steps, {row['produced']:,} transitions, "
        f"incarnation {row['incarnation']}"
    )


def _roles(tables: FleetTables | RunSummary) -> list[dict[str, Any]]:
    rows = tables.roles if isinstance(tables, FleetTables) else []
    return [row.model_dump() for row in rows]


def _role_text(row: dict[str, Any]) -> str:
    waits = f"waits for {row['waits_for']}" if row["waits_for"] else ""
    if not row["host"]:
        return f"not there; {waits}"
    where = f"{row['host']} (process {row['pid']}), {row['rate']:,.0f} {row['unit']}"
    return f"{where}, {waits}" if waits else where


def _newest(rows: list[dict[str, Any]], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def _age_s(path: Path, now_s: float) -> float | None:
    return max(0.0, round(now_s - path.stat().st_mtime, 1)) if path.exists() else None


def _checkpoint_state(run_dir: Path, now_s: float) -> dict[str, Any]:
    paths = list_checkpoints(run_dir / "checkpoints")
    newest = paths[-1] if paths else None
    return {
        "checkpoints": len(paths),
        "last_checkpoint": newest.name if newest else None,
        "last_checkpoint_age_s": _age_s(newest, now_s) if newest else None,
    }


def _checkpoint_text(status: dict[str, Any]) -> str:
    if status["last_checkpoint"] is None:
        return "none yet"
    return f"{status['last_checkpoint']}, {_ago(status['last_checkpoint_age_s'])}"


def _ago(age_s: float | None) -> str | None:
    return None if age_s is None else f"{duration(age_s)} ago"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
