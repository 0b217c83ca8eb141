"""What a fleet of n actors does per second, from the CPU time of single calls: pure arithmetic.

Used by `scaling.py`, which reads the measured costs and writes docs/scaling.md. A role is a process
with one core: it can spend one CPU second per second. Costs are CPU seconds, rates are per second,
sizes are bytes. Nothing here measures or reads anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

POLLS_PER_S = 4.0
"""The driver asks every role so often (`POLL_S` in src/qfleet/fleets/async_loop.py)."""
FAN_OUT_SHARE = 0.1
"""A publish period is long enough when sending takes at most so much of the learner's time."""
SHARD_LOAD = 0.7
"""A fleet has shards enough when they are at most so busy: above, latencies grow fast."""

UPDATES, SAMPLES, SENDING = "updates", "taking samples", "sending snapshots"


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
    snapshot_learner: float
    """Sending one actor one snapshot: the learner's thread."""
    snapshot_beside: float
    """The same: Ray's threads in the learner's process."""
    snapshot_actor: float
    """Taking it: call, decoding, building the network."""
    ping_driver: float
    """Asking one role: the driver's thread."""
    ping_beside: float
    """The same: Ray's threads in the driver's process."""
    ping_role: float
    """Answering."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One size of fleet, its settings and the bytes that travel."""

    n_actors: int
    n_shards: int
    chunk_rows: int
    chunk_bytes: float
    draw_bytes: float
    """One drawn transition on its way to the learner."""
    snapshot_bytes: float
    snapshot_copies_per_host: bool
    """Large snapshots go once to each host, small ones to each actor."""
    batch_size: int
    updates_per_call: int
    publish_period: int
    samples_per_insert: float | None
    """None: nobody waits for anybody."""

    @property
    def draws(self) -> int:
        """Transitions of one block."""
        return self.batch_size * self.updates_per_call


def block_parts_s(fleet: Fleet, costs: Costs) -> dict[str, float]:
    """The learner's time for one block of updates, by what it is spent on."""
    publishes = fleet.updates_per_call / fleet.publish_period
    return {
        UPDATES: fleet.updates_per_call / costs.updates_per_s,
        SAMPLES: fleet.n_shards * costs.sample_learner.at(fleet.draws / fleet.n_shards),
        SENDING: publishes * fleet.n_actors * costs.snapshot_learner,
    }


def block_s(fleet: Fleet, costs: Costs) -> float:
    """The learner's time for one block of updates."""
    return sum(block_parts_s(fleet, costs).values())


def learner_updates_per_s(fleet: Fleet, costs: Costs) -> float:
    """Updates per second when the learner never waits."""
    return fleet.updates_per_call / block_s(fleet, costs)


def actor_env_steps_per_s(fleet: Fleet, costs: Costs, updates_per_s: float) -> float:
    """One actor that never waits: what snapshots and pings leave of its core goes into steps."""
    taken = updates_per_s / fleet.publish_period * costs.snapshot_actor
    taken += POLLS_PER_S * costs.ping_role
    step_s = 1.0 / costs.env_steps_per_s
    step_s += costs.insert_actor.at(fleet.chunk_rows) / fleet.chunk_rows
    return max(0.0, 1.0 - taken) / step_s


def shard_env_steps_per_s(fleet: Fleet, costs: Costs, updates_per_s: float) -> float:
    """What all shards together can take in, with the samples that go with it.

    With a ratio the samples follow the inserts; without one the learner asks as often as it can.
    """
    insert_s = costs.insert_shard.at(fleet.chunk_rows) / fleet.chunk_rows
    sample_s = costs.sample_shard.at(fleet.draws / fleet.n_shards)
    polls_s = POLLS_PER_S * costs.ping_role
    if fleet.samples_per_insert is None:
        left = 1.0 - polls_s - updates_per_s / fleet.updates_per_call * sample_s
        return max(0.0, left) * fleet.n_shards / insert_s
    per_step_s = insert_s / fleet.n_shards + fleet.samples_per_insert / fleet.draws * sample_s
    return (1.0 - polls_s) / per_step_s


class Rates(NamedTuple):
    """What a fleet does per second, and what each part of it could carry, in env steps."""

    env_steps: float
    updates: float
    bounds: dict[str, float]
    learner_shares: dict[str, float]
    """Of the time of a block: `updates`, `taking samples`, `sending snapshots`."""
    driver_load: float
    """Of one core: the driver's thread."""

    @property
    def first_limit(self) -> str:
        """The part that carries least."""
        return min(self.bounds, key=self.bounds.__getitem__)

    @property
    def fan_out_share(self) -> float:
        """Of the learner's time, what goes into sending snapshots."""
        return self.learner_shares[SENDING]

    @property
    def learner_spends_most_on(self) -> str:
        """The largest part of a block."""
        return max(self.learner_shares, key=self.learner_shares.__getitem__)


def rates(fleet: Fleet, costs: Costs, network_bytes_per_s: float) -> Rates:
    """The fleet at the pace of its slowest part."""
    most = learner_updates_per_s(fleet, costs)
    bounds = {
        "actors": fleet.n_actors * actor_env_steps_per_s(fleet, costs, most),
        "shards": shard_env_steps_per_s(fleet, costs, most),
        "network": network_bytes_per_s / (fleet.chunk_bytes / fleet.chunk_rows),
    }
    updates = most
    if fleet.samples_per_insert is not None:
        bounds["learner"] = most * fleet.batch_size / fleet.samples_per_insert
        updates = min(bounds.values()) * fleet.samples_per_insert / fleet.batch_size
    whole_s = block_s(fleet, costs)
    shares = {part: part_s / whole_s for part, part_s in block_parts_s(fleet, costs).items()}
    polled = fleet.n_actors + fleet.n_shards + 1
    driver = POLLS_PER_S * polled * costs.ping_driver
    return Rates(min(bounds.values()), updates, bounds, shares, driver)


def publish_period(fleet: Fleet, costs: Costs) -> int:
    """The shortest multiple of the fleet's period at which sending is a small share of all."""
    parts_s = block_parts_s(fleet, costs)
    rest_s = (parts_s[UPDATES] + parts_s[SAMPLES]) / fleet.updates_per_call
    allowed_s = rest_s * FAN_OUT_SHARE / (1.0 - FAN_OUT_SHARE)
    periods = fleet.n_actors * costs.snapshot_learner / allowed_s / fleet.publish_period
    return max(1, math.ceil(periods)) * fleet.publish_period


def remedied(fleet: Fleet, costs: Costs, network_bytes_per_s: float) -> Fleet:
    """The fleet with as long a publish period and as many shards as it needs.

    Shards: the fewest that carry what the other parts can at `SHARD_LOAD`, at most one per actor;
    when no number does, the one that carries most.
    """
    best, most_carried = fleet, -1.0
    for n_shards in range(1, fleet.n_actors + 1):
        tried = replace(fleet, n_shards=n_shards)
        tried = replace(tried, publish_period=publish_period(tried, costs))
        found = rates(tried, costs, network_bytes_per_s)
        others = min(bound for part, bound in found.bounds.items() if part != "shards")
        if found.bounds["shards"] * SHARD_LOAD >= others:
            return tried
        if found.env_steps > most_carried:
            best, most_carried = tried, found.env_steps
    return best


class Calls(NamedTuple):
    """Calls per second of one process of each role."""

    actor_makes: float
    actor_answers: float
    shard_answers: float
    learner_answers: float
    learner_makes: float
    driver_makes: float


def calls_per_s(fleet: Fleet, found: Rates) -> Calls:
    """Pushes, samples, snapshots and the driver's polls."""
    pushes = found.env_steps / fleet.chunk_rows
    samples = found.updates / fleet.updates_per_call * fleet.n_shards
    publishes = found.updates / fleet.publish_period
    return Calls(
        actor_makes=pushes / fleet.n_actors,
        actor_answers=publishes + POLLS_PER_S,
        shard_answers=(pushes + samples) / fleet.n_shards + POLLS_PER_S,
        learner_answers=POLLS_PER_S,
        learner_makes=samples + publishes * fleet.n_actors,
        driver_makes=POLLS_PER_S * (fleet.n_actors + fleet.n_shards + 1),
    )


class Bytes(NamedTuple):
    """Bytes per second out of and into one process of each role."""

    actor_out: float
    actor_in: float
    shard_in: float
    shard_out: float
    learner_in: float
    learner_out: float
    driver_in: float


def bytes_per_s(fleet: Fleet, found: Rates, poll_bytes: float, n_hosts: int) -> Bytes:
    """Chunks, draws, snapshots and the driver's polls."""
    pushed = found.env_steps / fleet.chunk_rows * fleet.chunk_bytes
    drawn = found.updates * fleet.batch_size * fleet.draw_bytes
    published = found.updates / fleet.publish_period * fleet.snapshot_bytes
    copies = n_hosts if fleet.snapshot_copies_per_host else fleet.n_actors
    polled = POLLS_PER_S * poll_bytes
    return Bytes(
        actor_out=pushed / fleet.n_actors + polled,
        actor_in=published,
        shard_in=pushed / fleet.n_shards,
        shard_out=drawn / fleet.n_shards + polled,
        learner_in=drawn,
        learner_out=published * copies + polled,
        driver_in=polled * (fleet.n_actors + fleet.n_shards + 1),
    )


class Cores(NamedTuple):
    """Cores that the processes of each role keep busy together."""

    actors: float
    shards: float
    learner: float
    driver: float

    @property
    def busy(self) -> float:
        """All of them."""
        return sum(self)


def cores(fleet: Fleet, costs: Costs, found: Rates) -> Cores:
    """CPU seconds per second of each role."""
    pushes = found.env_steps / fleet.chunk_rows
    blocks = found.updates / fleet.updates_per_call
    published = found.updates / fleet.publish_period * fleet.n_actors
    polled = fleet.n_actors + fleet.n_shards + 1
    return Cores(
        actors=found.env_steps / costs.env_steps_per_s
        + pushes * costs.insert_actor.at(fleet.chunk_rows)
        + published * costs.snapshot_actor
        + POLLS_PER_S * fleet.n_actors * costs.ping_role,
        shards=pushes * costs.insert_shard.at(fleet.chunk_rows)
        + blocks * fleet.n_shards * costs.sample_shard.at(fleet.draws / fleet.n_shards)
        + POLLS_PER_S * fleet.n_shards * costs.ping_role,
        learner=blocks * block_s(fleet, costs) + published * costs.snapshot_beside,
        driver=POLLS_PER_S * polled * (costs.ping_driver + costs.ping_beside),
    )
