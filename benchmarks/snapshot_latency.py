"""From a learner step to the first action with its parameters, through Ray: p50 and p99.

    python benchmarks/snapshot_latency.py [--json FILE]

A run as `qfleet train` makes it (learner, one replay shard, actors, all free running), with clocks
beside learner and actors. The time counts from the end of the block of updates after which the
parameters are published until an actor's first vector step with them has been played: fingerprint
of the block, encoding, the call, decoding, building the network, and the step under way. A version
that was replaced before the actor took it has no first action; those are counted. The MLP of the
default preset travels inside the call; the larger one goes through Ray's object store.
"""

from __future__ import annotations

import time
from typing import Any

from machine import finish, latency, make_parser
from producers import START_TIMEOUT_S
from timed_roles import TimedRoles, start_roles

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import first_snapshot, resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.settings.plans import run_plans


def play(roles: TimedRoles, seconds: float) -> None:
    """Run all roles for so long after the first update."""
    runs = [actor.run.remote(roles.shards[0]) for actor in roles.actors.values()]
    runs.append(roles.learner.run.remote())
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not answer(roles.learner.blocks.remote(), "benchmark", "the learner"):
        if time.monotonic() > deadline_s:
            raise SystemExit("the learner made no update")
        time.sleep(0.05)
    time.sleep(seconds)
    for handle in [roles.learner, *roles.actors.values()]:
        answer(handle.request_stop.remote(), "benchmark", "a role to stop")
    for shard in roles.shards:
        answer(shard.open_gate.remote(), "benchmark", "a shard to open")
    for ref in runs:
        answer(ref, "benchmark", "a role to end")


def latencies_ms(
    blocks: list[tuple[int, float]], first_actions: list[tuple[int, float]]
) -> list[float]:
    """Milliseconds for every learner step that was published and acted on."""
    ended_at_s = dict(blocks)
    return [
        1000.0 * (acted_at_s - ended_at_s[learner_step])
        for learner_step, acted_at_s in first_actions
        if learner_step in ended_at_s
    ]


def measure(hidden_sizes: list[int], arguments: Any) -> Measurement:
    config, spec = configuration(hidden_sizes, arguments.actors)
    roles = start_roles(config, spec, arguments.actors)
    try:
        play(roles, arguments.seconds)
        blocks = answer(roles.learner.blocks.remote(), "benchmark", "the learner's notes")
        values: list[float] = []
        for actor in roles.actors.values():
            notes = answer(actor.first_actions.remote(), "benchmark", "an actor's notes")
            values += latencies_ms(blocks, notes)
    finally:
        roles.end()
    if not values:
        raise SystemExit("no parameters were published while it ran: give it more --seconds")
    n_bytes = sum(a.nbytes for a in first_snapshot(run_plans(config).learner, spec).arrays.values())
    period = config.learner.publish_period_learner_steps
    published = sum(step % period == 0 for step, _ in blocks)
    return latency(
        f"MLP {'-'.join(map(str, hidden_sizes))}, learner step to first action",
        values,
        published=published * len(roles.actors),
        kilobytes=round(n_bytes / 1000),
    )


def configuration(hidden_sizes: list[int], n_actors: int) -> tuple[Any, Any]:
    overrides: dict[str, object] = {
        "runtime": "ray",
        "actors.count": n_actors,
        "network.hidden_sizes": hidden_sizes,
        "eval.period_learner_steps": 1_000_000_000,
        "run.max_learner_steps": 1_000_000_000,
    }
    return resolved_preset("cartpole", overrides)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["128-64", "512-512"])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each network")
    arguments = parser.parse_args()
    cluster = connect(run_plans(configuration([128, 64], arguments.actors)[0]).cluster)
    try:
        found = [
            measure([int(size) for size in network.split("-")], arguments)
            for network in arguments.networks
        ]
    finally:
        disconnect(cluster)
    finish("snapshot_latency", arguments, found)


if __name__ == "__main__":
    main()
