"""What each switch of the DQN family costs per update, beside plain DQN in the same run.

    PYTHONPATH=src python benchmarks/family_cost.py [--rows 20000] [--repeats 15] [--json FILE]

The `cartpole` preset in one process, eager, one thread; every arm's replay holds the same number of
transitions. An update is a whole one: drawing its batch, importance weights, the update itself, the
priorities given back; its time is the process's own, so that others on the machine count little.
Arms take turns within each repeat; a ratio is of two neighbours in time.
"""

from __future__ import annotations

import statistics
import time

import torch
from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.common.envs import describe_environment
from qfleet.fleets.local_fleet import LocalFleet
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import Config
from qfleet.settings.plans import run_plans

BASE = {"runtime": "local", "learner.device": "cpu", "learner.compile": "off"}
SWITCHES: dict[str, dict[str, object]] = {
    "plain": {"learner.double_q": False},
    "double": {},
    "dueling": {"network.dueling": True, "learner.double_q": False},
    "prioritized": {"replay.sampling": "prioritized", "learner.double_q": False},
    "rank": {"replay.sampling": "rank", "learner.double_q": False},
    "noisy": {"network.noisy": True, "learner.double_q": False},
    "c51": {"network.distribution": "c51", "learner.double_q": False},
    "qr": {"network.distribution": "qr", "learner.double_q": False},
    "iqn": {"network.distribution": "iqn", "learner.double_q": False},
    "munchausen": {"learner.munchausen": True, "learner.double_q": False, "actors.n_step": 1},
    "layer norm": {"network.normalization": "layer", "learner.double_q": False},
    "batch norm": {"network.normalization": "batch", "learner.double_q": False},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="transitions in the replay")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    updates, fleets = 50, {}
    for name, changes in SWITCHES.items():
        config = Config.preset("cartpole", {**BASE, **changes})
        spec = describe_environment(config.env)
        plans = run_plans(resolve_config(config, spec, cpus=1, gpus=0))
        updates = plans.learner.updates_per_call
        fleets[name] = LocalFleet(plans, spec, run_id="cost", incarnation=0, device="cpu")
        fleets[name].act(arguments.rows)
        fleets[name].learn(2)
    took_us: dict[str, list[float]] = {name: [] for name in fleets}
    for _ in range(arguments.repeats):
        for name, fleet in fleets.items():
            start_s = time.process_time()
            fleet.learn(1)
            took_us[name].append((time.process_time() - start_s) / updates * 1e6)
    plain = took_us["plain"]
    found = []
    for name, values in took_us.items():
        ratios = [value / base for value, base in zip(values, plain, strict=True)]
        detail = {"times_plain": round(statistics.median(ratios), 2)}
        found.append(Measurement(name, "us/update", tuple(values), detail))
    finish("family_cost", arguments, found)


if __name__ == "__main__":
    main()
