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

from machine import finish, make_parser

import qfleet
from qfleet.bench.part_benchmarks import Measurement
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

AXES = {
    "actors.count": (1, 3),
    "replay.shards": (1, 2),  # with one actor the second one stays empty
    "replay.sampling": ("uniform", "prioritized"),
    "network.normalization": ("none", "batch"),
    "actors.n_step": (1, 3),
}
COMMON: dict[str, object] = {
    "actors.envs_per_actor": 4,
    "replay.min_size_to_sample": 200,
    "learner.updates_per_call": 10,
    "eval.period_learner_steps": 100,
    "eval.episodes": 3,
    "eval.solved_at_return": None,
    "run.max_learner_steps": 200,
    "metrics.console": "none",
}
LOCKSTEP = {"runtime": "ray", "run.schedule": "lockstep"}


def train(cell: dict[str, object], directory: Path) -> tuple[str, float]:
    """(params_sha256, training seconds) of one run."""
    config = qfleet.Config.preset("cartpole", {**COMMON, **cell})
    result = qfleet.train(config, run_dir=directory)
    return result.params_sha256, result.train_s


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, default=None, help="only the first N cells")
    parser.add_argument("--repeat", action="store_true", help="run Ray twice per cell")
    args = parser.parse_args()
    cells = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    cells = cells[: args.cells]
    os.environ.pop("RAY_ADDRESS", None)
    widest = {name: values[-1] for name, values in AXES.items()} | {"learner.num_gpus": 0}
    config = qfleet.Config.preset("cartpole", widest)
    plans = run_plans(resolve_config(config, None, cpus=os.cpu_count() or 1, gpus=0))
    cluster = connect(plans.cluster)
    seconds: dict[str, list[float]] = {"local": [], "lockstep": []}
    agreed: list[bool] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index, cell in enumerate(cells, 1):
                root = Path(folder) / str(index)
                local, local_s = train({**cell, "runtime": "local"}, root / "local")
                remote, remote_s = train({**cell, **LOCKSTEP}, root / "ray")
                again = train({**cell, **LOCKSTEP}, root / "again")[0] if args.repeat else remote
                agreed.append(local == remote == again)
                seconds["local"].append(local_s)
                seconds["lockstep"].append(remote_s)
                values = " ".join(f"{k.split('.')[-1]}={v}" for k, v in cell.items())
                verdict = "agree" if agreed[-1] else "DIFFER"
                print(f"{index:2d}/{len(cells)} {verdict}  {local[:12]}  {values}", flush=True)
    finally:
        disconnect(cluster)
    name = "local and lockstep agree"
    about = {"of": len(cells)}
    found = [Measurement(name, "configurations", (sum(agreed),), about)]
    found += [Measurement(f"training, {k}", "s", tuple(v)) for k, v in seconds.items()]
    differ = [f"DIFFER {cell}" for cell, ok in zip(cells, agreed, strict=True) if not ok]
    finish("lockstep_grid", args, found, differ)
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
