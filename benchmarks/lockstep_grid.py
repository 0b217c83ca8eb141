"""Same bits everywhere: local runtime against lockstep on Ray, over a grid of configurations.

    python benchmarks/lockstep_grid.py --json grid.json

Each cell trains for a few hundred updates with evaluation on, in both runtimes, and compares
`params_sha256`; the last column repeats the Ray run. Exit status 1 when any cell disagrees.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import finish, make_parser

import qfleet
from qfleet.bench.part_benchmarks import Measurement
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

LEARNER_STEPS = 200


def grid() -> list[dict[str, object]]:
    """32 cells: actors × shards × sampling × normalization × n-step.

    With one actor the second shard stays empty.
    """
    axes = itertools.product((1, 3), (1, 2), ("uniform", "prioritized"), ("none", "batch"), (1, 3))
    return [
        {
            "actors.count": actors,
            "replay.shards": shards,
            "replay.sampling": sampling,
            "network.normalization": normalization,
            "actors.n_step": n_step,
        }
        for actors, shards, sampling, normalization, n_step in axes
    ]


def train(cell: dict[str, object], directory: Path, **extra: object) -> tuple[str, float]:
    """(params_sha256, training seconds) of one run."""
    config = qfleet.Config.preset(
        "cartpole",
        {
            **cell,
            "actors.envs_per_actor": 4,
            "replay.min_size_to_sample": 200,
            "learner.updates_per_call": 10,
            "eval.period_learner_steps": 100,
            "eval.episodes": 3,
            "eval.solved_at_return": None,
            "run.max_learner_steps": LEARNER_STEPS,
            "metrics.console": "none",
            **extra,
        },
    )
    result = qfleet.train(config, run_dir=directory)
    return result.params_sha256, result.train_s


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, default=None, help="only the first N cells")
    parser.add_argument("--repeat", action="store_true", help="run Ray twice per cell")
    args = parser.parse_args()
    cells = grid()[: args.cells]
    rows: list[dict[str, Any]] = []
    os.environ.pop("RAY_ADDRESS", None)
    widest = qfleet.Config.preset(
        "cartpole", {"actors.count": 3, "replay.shards": 2, "learner.num_gpus": 0}
    )
    plans = run_plans(resolve_config(widest, None, cpus=os.cpu_count() or 1, gpus=0))
    cluster = connect(plans.cluster)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index, cell in enumerate(cells):
                root = Path(folder) / str(index)
                local, local_s = train(cell, root / "local", runtime="local")
                lockstep = {"runtime": "ray", "run.schedule": "lockstep"}
                remote, remote_s = train(cell, root / "ray", **lockstep)
                again = train(cell, root / "again", **lockstep)[0] if args.repeat else remote
                rows.append(
                    {
                        **cell,
                        "agree": local == remote == again,
                        "params_sha256": local,
                        "local_train_s": local_s,
                        "lockstep_train_s": remote_s,
                    }
                )
                values = " ".join(f"{k.split('.')[-1]}={v}" for k, v in cell.items())
                verdict = "agree" if rows[-1]["agree"] else "DIFFER"
                print(f"{index + 1:2d}/{len(cells)} {verdict}  {local[:12]}  {values}", flush=True)
    finally:
        disconnect(cluster)
    agree = sum(bool(row["agree"]) for row in rows)
    finish(
        "lockstep_grid",
        args,
        [
            Measurement("local and lockstep agree", "configurations", (agree,), {"of": len(rows)}),
            Measurement("training, local", "s", tuple(row["local_train_s"] for row in rows)),
            Measurement("training, lockstep", "s", tuple(row["lockstep_train_s"] for row in rows)),
        ],
        [f"{'agree' if r['agree'] else 'DIFFER'} {r}" for r in rows if not r["agree"]],
    )
    return 0 if agree == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
