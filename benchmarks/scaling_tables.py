"""The tables of docs/scaling.md; most have a row for each size of fleet.

Used by `scaling_page.py`. Every figure comes in through an argument or `scaling_assumptions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import scaling_assumptions as assumed
from report import markdown_table
from scaling_model import (
    FAN_OUT_SHARE,
    UPDATES,
    Costs,
    Fleet,
    Line,
    Rates,
    bytes_per_s,
    calls_per_s,
    cores,
    rates,
    remedied,
)

from qfleet.bench.bench_record import number
from qfleet.cluster.ray_cluster import EVALUATOR_CPUS, SHARD_CPUS
from qfleet.common.config import Config

NETWORK = assumed.NETWORK_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class Workload:
    """What a fleet plays: its settings with one actor, as they come and before the remedies."""

    key: str
    """In `scaling_page.TEXTS`."""
    fleet: Fleet
    larger_chunk: Fleet
    costs: Costs
    gpus: int = 0

    def better(self, n_actors: int) -> Fleet:
        """That size with its remedies."""
        return remedied(replace(self.larger_chunk, n_actors=n_actors), self.costs, NETWORK)


class Prediction(NamedTuple):
    """Saturation of replay shards, computed and measured, in calls/s."""

    n_shards: int
    chunk_rows: int
    elsewhere: float
    """Cores that other programs took meanwhile."""
    measured: tuple[float, float, float]
    """Median, smallest, largest."""
    bounds: dict[str, float]
    """By what is used up, from light load on one shard."""
    by_division: float
    """Cores ÷ the CPU time of a call at half load on one shard."""
    from_saturated: float
    """Cores ÷ the CPU time of a call on one saturated shard."""


class Mixed(NamedTuple):
    """Inserts beside samples: cores that the measured rates should take."""

    name: str
    taken: float
    usable: int
    of_one_shard: float


class Need(NamedTuple):
    """What a fleet occupies and costs."""

    busy: float
    reserved: float
    paid: int
    hosts: int
    usd_per_hour: float


def need(fleet: Fleet, costs: Costs, found: Rates, config: Config, gpus: int) -> Need:
    """Cores to pay for: those that Ray reserves or those that are busy, whichever are more."""
    busy = cores(fleet, costs, found).busy
    reserved = config.learner.num_cpus + fleet.n_shards * SHARD_CPUS + EVALUATOR_CPUS
    reserved += fleet.n_actors * config.actors.num_cpus
    paid = math.ceil(max(busy, reserved))
    usd = paid * assumed.USD_PER_CORE_HOUR + gpus * assumed.USD_PER_GPU_HOUR
    return Need(busy, reserved, paid, math.ceil(paid / assumed.CORES_PER_HOST), usd)


# Cells


def amount(n_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def rate(per_s: float) -> str:
    """Three digits: more would claim too much."""
    if per_s >= 1e6:
        return f"{per_s / 1e6:.3g} M"
    if per_s >= 1e3:
        return f"{round(per_s, 2 - math.floor(math.log10(per_s))):,.0f}"
    return f"{per_s:.3g}"


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.0f} %"


def error(predicted: float, measured: float) -> str:
    """How far a prediction is off."""
    return f"{100 * (predicted / measured - 1):+.0f} %"


def first_limit(found: Rates) -> str:
    """The part that carries least, and what else is beyond its core."""
    limit = found.first_limit
    works_on = found.learner_spends_most_on
    if limit == "learner" and works_on != UPDATES:
        limit = f"learner, mostly {works_on}"
    if "learner" not in found.bounds and works_on != UPDATES:
        limit += f"; few updates, the learner is mostly {works_on}"
    if found.driver_load > 1.0:
        limit += "; the driver's polls come late"
    return limit


def remedy(fleet: Fleet, better: Fleet, found: Rates, costs: Costs) -> str:
    """The keys that move the first limit."""
    keys = []
    if found.first_limit == "shards":
        if better.chunk_rows != fleet.chunk_rows:
            keys.append(f"`actors.chunk_transitions {better.chunk_rows}`")
        if better.n_shards != fleet.n_shards:
            keys.append(f"`replay.shards {better.n_shards}`")
    sends_much = found.fan_out_share > FAN_OUT_SHARE and found.first_limit != "actors"
    if sends_much and better.publish_period != fleet.publish_period:
        keys.append(f"`learner.publish_period_learner_steps {better.publish_period}`")
    if found.first_limit == "learner":
        then = rates(better, costs, NETWORK).bounds
        enough = math.ceil(then["learner"] / (then["actors"] / better.n_actors))
        many = "1 actor is" if enough == 1 else f"{enough:,} actors are"
        keys.append(f"{many} enough, or a lower `replay.samples_per_insert`")
    if found.first_limit == "network":
        keys.append("a faster network")
    if found.first_limit == "actors":
        keys.append("more actors, or `actors.envs_per_actor`")
    return ", ".join(keys)


# Fleets


def as_it_comes(workload: Workload) -> list[str]:
    """One shard and the settings as they are: what each part could carry."""
    body = []
    for n_actors in assumed.SIZES:
        fleet = replace(workload.fleet, n_actors=n_actors)
        found = rates(fleet, workload.costs, NETWORK)
        body.append(
            [
                number(n_actors),
                *(rate(found.bounds[part]) for part in ("actors", "shards", "network")),
                rate(found.bounds["learner"]) if "learner" in found.bounds else "–",
                rate(found.updates),
                percent(found.fan_out_share),
                percent(found.driver_load),
                first_limit(found),
                remedy(fleet, workload.better(n_actors), found, workload.costs),
            ]
        )
    head = [
        "actors",
        "actors play",
        "shard takes",
        "network takes",
        "learner uses",
        "updates/s",
        "sending",
        "driver",
        "first limit",
        "remedy",
    ]
    return markdown_table(head, body)


def with_remedies(workload: Workload, config: Config) -> list[str]:
    """Rates, calls, bytes, cores and cost of every size with its remedies."""
    costs = workload.costs
    fleets = [workload.better(n_actors) for n_actors in assumed.SIZES]
    pairs = [(fleet, rates(fleet, costs, NETWORK)) for fleet in fleets]
    needs = [need(fleet, costs, found, config, workload.gpus) for fleet, found in pairs]
    return [
        *rates_table(pairs),
        "",
        "Calls per second, made or answered by one process of the role:",
        "",
        *calls_table(pairs),
        "",
        "Bytes per second, out of and into one process of the role:",
        "",
        *bytes_table(pairs, needs),
        "",
        "Cores that are busy, CPUs that Ray reserves, and the price:",
        "",
        *price_table(pairs, needs, costs),
    ]


Pairs = Sequence[tuple[Fleet, Rates]]


def rates_table(pairs: Pairs) -> list[str]:
    """Settings and pace."""
    body = [
        [
            number(fleet.n_actors),
            number(fleet.n_shards),
            number(fleet.chunk_rows),
            number(fleet.publish_period),
            rate(found.env_steps),
            rate(found.updates),
            first_limit(found),
        ]
        for fleet, found in pairs
    ]
    head = ["actors", "shards", "chunk", "publish every", "env steps/s", "updates/s", "limit then"]
    return markdown_table(head, body)


def calls_table(pairs: Pairs) -> list[str]:
    """Calls per second."""
    body = []
    for fleet, found in pairs:
        calls = calls_per_s(fleet, found)
        body.append([number(fleet.n_actors), *map(rate, calls)])
    head = [
        "actors",
        "an actor pushes",
        "an actor answers",
        "a shard answers",
        "the learner answers",
        "the learner makes",
        "the driver makes",
    ]
    return markdown_table(head, body)


def bytes_table(pairs: Pairs, needs: Sequence[Need]) -> list[str]:
    """Bytes per second."""
    body = [
        [
            number(fleet.n_actors),
            *map(amount, bytes_per_s(fleet, found, assumed.POLL_BYTES, each.hosts)),
        ]
        for (fleet, found), each in zip(pairs, needs, strict=True)
    ]
    head = ["actors", "actor out", "actor in", "shard in", "shard out", "learner in"]
    return markdown_table([*head, "learner out", "driver in"], body)


def price_table(pairs: Pairs, needs: Sequence[Need], costs: Costs) -> list[str]:
    """Cores and money."""
    body = []
    for (fleet, found), each in zip(pairs, needs, strict=True):
        body.append(
            [
                number(fleet.n_actors),
                *(f"{value:,.2f}" for value in cores(fleet, costs, found)),
                f"{each.busy:,.1f}",
                f"{each.reserved:,.1f}",
                number(each.paid),
                number(each.hosts),
                f"{each.usd_per_hour:,.2f}",
                f"{each.usd_per_hour * assumed.EUR_PER_USD:,.2f}",
            ]
        )
    head = ["actors", "all actors", "all shards", "learner", "driver", "busy", "reserved"]
    return markdown_table([*head, "core-hours/h", "hosts", "USD/h", "EUR/h"], body)


# What was measured


def prediction_table(found: Sequence[Prediction]) -> list[str]:
    """Computed beside measured."""
    body = []
    for each in found:
        limit = min(each.bounds, key=each.bounds.__getitem__)
        predicted, (median, low, high) = each.bounds[limit], each.measured
        body.append(
            [
                number(each.n_shards),
                rate(median * each.chunk_rows),
                f"{median:,.0f} ({low:,.0f}–{high:,.0f})",
                f"{predicted:,.0f}",
                error(predicted, median),
                limit,
                f"{each.by_division:,.0f}",
                error(each.by_division, median),
                f"{each.from_saturated:,.0f}",
                error(each.from_saturated, median),
                f"{each.elsewhere:.2f}",
            ]
        )
    head = ["shards", "measured transitions/s", "measured calls/s (min–max)"]
    head += ["by the line", "error", "used up", "by division", "error"]
    return markdown_table([*head, "from one saturated shard", "error", "cores elsewhere"], body)


def mixed_table(found: Sequence[Mixed]) -> list[str]:
    """Cores computed beside those there are."""
    body = [
        [each.name, f"{each.taken:.2f} of {each.usable}", f"{each.of_one_shard:.2f} of 1"]
        for each in found
    ]
    return markdown_table(["", "all processes", "each shard"], body)


def cost_table(costs: Costs) -> list[str]:
    """The measured costs that everything is computed from."""

    def line(title: str, client: Line, shard: Line, what: str) -> list[str]:
        sides = (client, shard)
        return [
            title,
            *(f"{1e3 * one.fixed:.2f} ms + {1e6 * one.slope:.2f} µs per {what}" for one in sides),
        ]

    def plain(title: str, sender: float, receiver: float) -> list[str]:
        return [title, f"{1000 * sender:.2f} ms", f"{1000 * receiver:.2f} ms"]

    body = [
        line("push", costs.insert_actor, costs.insert_shard, "row"),
        line("sample", costs.sample_learner, costs.sample_shard, "draw"),
        plain("snapshot to one actor", costs.snapshot_learner, costs.snapshot_actor),
        plain("ping", costs.ping_driver, costs.ping_role),
    ]
    return markdown_table(["CPU time of one", "who asks", "who answers"], body)
