"""CartPole env steps per second of one actor on one core, and where its time goes.

    python benchmarks/actor_speed.py [--json FILE]

An actor's step is the environment's vector step, one forward of the network for all
sub-environments, exploration, the n-step windows, and every 512 transitions a chunk and its bytes.
Beside the whole: the environment alone, the network alone, and an actor whose chunks carry
priorities. No torch and no Ray takes part in a step.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from machine import finish, make_parser

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import (
    SEED,
    Effort,
    first_snapshot,
    measure_actor_of,
    rates_per_s,
    resolved_preset,
)
from qfleet.common.q_functions import build_q_function
from qfleet.common.threads import limit_threads
from qfleet.common.vector_envs import make_vector_env
from qfleet.settings.plans import run_plans

ROLES = {
    "": {},
    ", prioritized": {"replay.sampling": "prioritized"},
    ", BatchNorm": {"network.normalization": "batch"},
}


def measure_environment(n_envs: int, effort: Effort) -> Measurement:
    """The adapter's vector step, with actions drawn beforehand."""
    config, spec = resolved_preset("cartpole")
    env = make_vector_env(config.env, n_envs)
    env.reset(SEED)
    actions = np.random.default_rng(SEED).integers(0, spec.n_actions, (256, n_envs), dtype=np.int32)
    step = 0

    def call() -> None:
        nonlocal step
        env.step(actions[step % len(actions)])
        step += 1

    rates = rates_per_s(call, n_envs, effort)
    env.close()
    return Measurement(f"environment alone, {n_envs}", "env steps/s", tuple(rates))


def measure_network(n_envs: int, effort: Effort) -> Measurement:
    """One forward of the preset's MLP for all sub-environments."""
    config, spec = resolved_preset("cartpole")
    network = build_q_function(
        config.network, spec, first_snapshot(run_plans(config).learner, spec).arrays
    )
    rng = np.random.default_rng(SEED)
    observations = rng.standard_normal((n_envs, *spec.observation_shape), dtype=np.float32)
    rates = rates_per_s(lambda: network.q_values(observations), n_envs, effort)
    return Measurement(f"network alone, {n_envs}", "env steps/s", tuple(rates))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sub-envs", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--repeat-s", type=float, default=0.4)
    arguments = parser.parse_args()
    effort = Effort(arguments.repeats, arguments.repeat_s)
    limit_threads(1)
    found = []
    for n_envs in arguments.sub_envs:
        for note, overrides in ROLES.items():
            found.append(measure_actor_of(n_envs, effort, overrides, note))
        for part in (measure_environment, measure_network):
            found.append(part(n_envs, effort))
    found = [replace(m, detail={**m.detail, "threads": 1}) for m in found]
    finish("actor_speed", arguments, found)


if __name__ == "__main__":
    main()
