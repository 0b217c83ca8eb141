"""What a fleet of n actors does per second, from the CPU time of single calls: pure arithmetic.

Used by `scaling.py`, which reads the measured costs and writes docs/scaling.md. A role is a process
with one core: it can spend one CPU second per second. Costs are CPU seconds, rates are per second,
sizes are bytes. Nothing here measures or reads anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

POLLS_PER_S = 4.0
"""The driver asks every role so often (`POLL_S` in src/qfleet/fleets/fleet.py)."""
SHARD_LOAD = 0.7
"""A fleet has shards enough when they are at most so busy: above, latencies grow fast."""


class Line(NamedTuple):
    """`fixed + slope · x`."""

    fixed: float
    slope: float

    def at(self, x: float) -> float:
        """The value at x."""
        return self.fixed + self.slope * x


def line_through(first: tuple[float, float], second: tuple[float, float]) -> Line:
    """The line through two points; one that falls below 0 at x = 0 goes through 0 and the larger.

    A negative cost per call would be noise, and small calls would seem to cost nothing.
    """
    (x1, y1), (x2, y2) = sorted((first, second))
    slope = (y2 - y1) / (x2 - x1)
    fixed = y1 - slope * x1
    return Line(fixed, slope) if fixed >= 0 else Line(0.0, y2 / x2)


def least_squares(points: Sequence[tuple[float, float]]) -> Line:
    """The line with the least squared distance in y."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return Line(mean_y - slope * mean_x, slope)


def saturating_calls_per_s(
    cores: float, machine: Line, n_shards: int, shard: Line
) -> dict[str, float]:
    """Calls per second at which the cores of the machine, or of the shards, are used up.

    Args:
        cores: What the exchange can have of the machine.
        machine: Cores that all its processes keep busy over calls/s.
        n_shards: Shards that share the calls.
        shard: Cores of one shard over its calls/s; one process counts as one core.
    """
    return {
        "the machine's cores": (cores - machine.fixed) / machine.slope,
        "one core per shard": n_shards * (1.0 - shard.fixed) / shard.slope,
    }


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds of single calls, and what one process of a role does with a core of its own."""

    env_steps_per_s: float
    """One actor: network, environment, n-step windows and encoding."""
    updates_per_s: float
    """The learner with its samples at hand."""
    insert_actor: Line
    """One push, over rows: the actor's side."""
    insert_shard: Line
    """The same, the shard's side."""
    sample_learner: Line
    """One sample, over draws: the learner's side."""
    sample_shard: Line
    """The same, the shard's side."""
    publish_learner: float
    """One version to one shard: the learner's process, its publishing thread included. To each
    further shard it is one more small call."""
    snapshot_shard: float
    """Handing one actor one snapshot with an acknowledgement."""
    snapshot_actor: float
    """Taking it: decoding, building the network."""
    ping_driver: float
    """Asking one role: the driver's thread."""
    ping_role: float
    """Answering."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One size of fleet, its settings and the bytes that travel."""

    n_actors: int
    n_shards: int
    chunk_rows: int
    row_bytes: float
    """One transition on its way to a shard."""
    draw_bytes: float
    """One drawn transition on its way to the learner."""
    batch_size: int
    updates_per_call: int
    publish_period: int
    announce_period_s: float
    """Versions that come faster are not announced."""
    samples_per_insert: float | None
    """None: nobody waits for anybody."""

    @property
    def draws(self) -> int:
        """Transitions of one block."""
        return self.batch_size * self.updates_per_call


def block_parts_s(fleet: Fleet, costs: Costs) -> dict[str, float]:
    """The learner's time for one block of updates, by what it is spent on."""
    updates_s = fleet.updates_per_call / costs.updates_per_s
    samples_s = fleet.n_shards * costs.sample_learner.at(fleet.draws / fleet.n_shards)
    announcing_s = costs.publish_learner + (fleet.n_shards - 1) * costs.ping_driver
    announced = fleet.updates_per_call / fleet.publish_period
    if fleet.announce_period_s > announcing_s:  # then the block takes announced × the period
        most = (updates_s + samples_s) / (fleet.announce_period_s - announcing_s)
        announced = min(announced, most)
    return {
        "updates": updates_s,
        "taking samples": samples_s,
        "publishing": announced * announcing_s,
    }


def snapshots_per_push(fleet: Fleet, costs: Costs, updates_per_s: float) -> float:
    """How many snapshots an actor takes with one acknowledgement: at most the newest, so one."""
    step_s = 1.0 / costs.env_steps_per_s
    pushes_per_s = 1.0 / (fleet.chunk_rows * step_s + costs.insert_actor.at(fleet.chunk_rows))
    announced_per_s = min(updates_per_s / fleet.publish_period, 1.0 / fleet.announce_period_s)
    return min(1.0, announced_per_s / pushes_per_s)


class Rates(NamedTuple):
    """What a fleet does per second, and what each part of it could carry, in env steps."""

    env_steps: float
    updates: float
    bounds: dict[str, float]
    learner_shares: dict[str, float]
    """Of the time of a block: `updates`, `taking samples`, `publishing`."""
    driver_load: float
    """Of one core: the driver's thread."""
    busy_cores: float
    """That all processes keep busy together."""

    @property
    def first_limit(self) -> str:
        """The part that carries least."""
        return min(self.bounds, key=self.bounds.__getitem__)


def rates(fleet: Fleet, costs: Costs, network_bytes_per_s: float) -> Rates:
    """The fleet at the pace of its slowest part."""
    parts_s = block_parts_s(fleet, costs)
    block_s = sum(parts_s.values())
    most = fleet.updates_per_call / block_s
    taken = snapshots_per_push(fleet, costs, most)
    per_actor_step_s = 1.0 / costs.env_steps_per_s
    push_s = costs.insert_actor.at(fleet.chunk_rows) + taken * costs.snapshot_actor
    per_actor_step_s += push_s / fleet.chunk_rows
    polls = POLLS_PER_S * costs.ping_role
    insert_s = costs.insert_shard.at(fleet.chunk_rows) + taken * costs.snapshot_shard
    insert_s /= fleet.chunk_rows
    sample_s = costs.sample_shard.at(fleet.draws / fleet.n_shards)
    ratio = fleet.samples_per_insert
    bounds = {
        "actors": fleet.n_actors * (1.0 - polls) / per_actor_step_s,
        "network": network_bytes_per_s / fleet.row_bytes,
    }
    if ratio is None:
        left = 1.0 - polls - most / fleet.updates_per_call * sample_s
        bounds["shards"] = max(0.0, left) * fleet.n_shards / insert_s
        env_steps, updates = min(bounds.values()), most
    else:
        bounds["shards"] = (1.0 - polls) / (
            insert_s / fleet.n_shards + ratio / fleet.draws * sample_s
        )
        bounds["learner"] = most * fleet.batch_size / ratio
        env_steps = min(bounds.values())
        updates = env_steps * ratio / fleet.batch_size
    blocks = updates / fleet.updates_per_call
    polled = fleet.n_actors + fleet.n_shards + 1
    driver = POLLS_PER_S * polled * costs.ping_driver
    busy = env_steps * (per_actor_step_s + insert_s) + driver + polled * polls
    busy += blocks * (block_s + fleet.n_shards * sample_s)
    shares = {part: part_s / block_s for part, part_s in parts_s.items()}
    return Rates(env_steps, updates, bounds, shares, driver, busy)


def with_shards_enough(fleet: Fleet, costs: Costs, network_bytes_per_s: float) -> Fleet:
    """The fleet with the fewest shards that carry what the other parts do at `SHARD_LOAD`.

    At most one per actor; when no number does, the one that carries most.
    """
    best, most_carried = fleet, -1.0
    for n_shards in range(1, fleet.n_actors + 1):
        tried = replace(fleet, n_shards=n_shards)
        found = rates(tried, costs, network_bytes_per_s)
        others = min(bound for part, bound in found.bounds.items() if part != "shards")
        if found.bounds["shards"] * SHARD_LOAD >= others:
            return tried
        if found.env_steps > most_carried:
            best, most_carried = tried, found.env_steps
    return best
