"""Writes docs/scaling.md: what 1, 16, 256 and 1000 actors need, computed from the records.

    python benchmarks/scaling.py [--check]

Reads benchmarks/results/*.json and the default preset; the arithmetic is in `scaling_model.py`,
tables and text in `scaling_tables.py` and `scaling_page.py`. What was not measured stands in
`scaling_assumptions.py`, and the page says so.
`--check` writes nothing and fails when the page is not what records, preset and assumptions give.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import scaling_assumptions as assumed
from report import RESULTS, read_records
from scaling_memory import Memory
from scaling_model import (
    Costs,
    Fleet,
    Line,
    least_squares,
    line_through,
    saturating_calls_per_s,
)
from scaling_page import page
from scaling_tables import Mixed, Prediction, Workload

from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.common.config import Config
from qfleet.common.types import EnvironmentSpec, transition_columns

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
NETWORKS = ("128-64", "512-512")
FEWEST_STEPS = 3
TREE_NODE_BYTES = 8
MB = 1e6

Records = Mapping[str, Mapping[str, Any]]


class Figures:
    """Rows of the records, each found by record and name.

    Raises:
        SystemExit: when one is missing, with the command that makes it.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def record(self, benchmark: str) -> Mapping[str, Any]:
        """A whole record."""
        if benchmark not in self._records:
            command = f"python benchmarks/{benchmark}.py"
            sys.exit(f"no record: {command} --json benchmarks/results/{benchmark}.json")
        return self._records[benchmark]

    def rows(self, benchmark: str) -> list[Mapping[str, Any]]:
        """All rows of a record."""
        return list(self.record(benchmark)["results"])

    def row(self, benchmark: str, name: str) -> Mapping[str, Any]:
        """The row of that name."""
        for row in self.rows(benchmark):
            if row["name"] == name:
                return row
        sys.exit(f"{benchmark}.json has no row {name!r}: run benchmarks/{benchmark}.py again")

    def median(self, benchmark: str, name: str) -> float:
        """Its figure."""
        return float(self.row(benchmark, name)["median"])

    def detail(self, benchmark: str, name: str, key: str) -> float:
        """A figure beside it."""
        return float(self.row(benchmark, name)["detail"][key])


# Costs


def light_steps(figures: Figures, cell: str) -> list[Mapping[str, Any]]:
    """Details of a cell's steps up to half of what saturates it.

    Raises:
        SystemExit: when they are too few for a line.
    """
    half = figures.median("replay_saturation", f"{cell}, saturating calls") / 2
    found = [
        row["detail"]
        for row in figures.rows("replay_saturation")
        if row["name"].startswith(f"{cell}, ") and "acknowledged" in row.get("detail", {})
    ]
    light = [detail for detail in found if detail["offered"] <= half]
    if len(light) < FEWEST_STEPS:
        sys.exit(f"{cell}: {len(light)} steps up to half load, {FEWEST_STEPS} are needed")
    return light


def cores_over_calls(steps: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> Line:
    """Cores that groups of processes keep busy, as a line over calls/s."""
    return least_squares(
        [(step["acknowledged"], sum(step[f"{group} cores"] for group in groups)) for step in steps]
    )


def insert_lines(figures: Figures) -> tuple[Line, Line]:
    """CPU seconds of a push over its rows, at the client and at a saturated shard."""
    settings = figures.record("replay_saturation")["settings"]

    def line(group: str) -> Line:
        first, second = (
            (
                float(rows),
                _cpu_s(figures, f"1 shard, chunk {rows}, CPU per call, saturating", group),
            )
            for rows in (settings["small_chunk"], settings["chunk"])
        )
        return line_through(first, second)

    return line("clients"), line("shards")


def sample_lines(figures: Figures) -> tuple[Line, Line]:
    """CPU seconds of a sample over its draws, at the client and at the shard."""
    settings = figures.record("replay_saturation")["settings"]
    cell = f"1 shard, chunk {settings['chunk']}"
    larger, smaller = sorted(settings["draws"], reverse=True)[:2]

    def line(group: str) -> Line:
        first, second = (
            (float(draws), _cpu_s(figures, f"{cell}, CPU per sample of {draws}", group))
            for draws in (smaller, larger)
        )
        return line_through(first, second)

    return line("clients"), line("shards")


def _cpu_s(figures: Figures, name: str, group: str) -> float:
    """CPU seconds of one group of processes per call."""
    return figures.detail("replay_saturation", name, group) / 1000


def snapshot_s(figures: Figures, side: str, n_bytes: float) -> float:
    """CPU seconds of one snapshot to one actor, by the line through both measured sizes."""
    small, large = (
        (
            figures.detail("call_cost", f"snapshot, MLP {network}, {side}", "bytes"),
            figures.median("call_cost", f"snapshot, MLP {network}, {side}") / 1000,
        )
        for network in NETWORKS
    )
    return line_through(small, large).at(n_bytes)


def measured_costs(figures: Figures, config: Config, snapshot_bytes: float) -> Costs:
    """All costs of the default preset."""
    insert_actor, insert_shard = insert_lines(figures)
    sample_learner, sample_shard = sample_lines(figures)
    thread = snapshot_s(figures, "thread", snapshot_bytes)
    ping = {
        side: figures.median("call_cost", f"ping, {side}") / 1000
        for side in ("thread", "process", "receiver")
    }
    sub_envs = config.actors.envs_per_actor
    return Costs(
        env_steps_per_s=figures.median(
            "actor_speed", f"actor, CartPole, {sub_envs} sub-environments"
        ),
        updates_per_s=figures.median("learner_speed", "cartpole, update_block, compiled"),
        insert_actor=insert_actor,
        insert_shard=insert_shard,
        sample_learner=sample_learner,
        sample_shard=sample_shard,
        snapshot_learner=thread,
        snapshot_beside=max(0.0, snapshot_s(figures, "process", snapshot_bytes) - thread),
        snapshot_actor=snapshot_s(figures, "receiver", snapshot_bytes),
        ping_driver=ping["thread"],
        ping_beside=max(0.0, ping["process"] - ping["thread"]),
        ping_role=ping["receiver"],
    )


# Workloads


def chunk_line(figures: Figures) -> Line:
    """Bytes of a chunk over its rows."""
    settings = figures.record("replay_saturation")["settings"]
    small, large = (
        (float(rows), figures.median("replay_saturation", f"chunk of {rows}"))
        for rows in (settings["small_chunk"], settings["chunk"])
    )
    return line_through(small, large)


def row_bytes(spec: EnvironmentSpec) -> int:
    """Bytes of one transition's columns."""
    columns = transition_columns(spec)
    return sum(math.prod(c.shape) * int(c.dtype[2:]) for c in columns)


def preset_fleet(
    config: Config, spec: EnvironmentSpec, chunk_bytes: Line, snapshot_bytes: float
) -> Fleet:
    """One actor and one shard with the settings of the default preset."""
    chunk_rows, updates_per_call = config.actors.chunk_transitions, config.learner.updates_per_call
    assert isinstance(chunk_rows, int), "resolved"
    assert isinstance(updates_per_call, int), "resolved"
    return Fleet(
        n_actors=1,
        n_shards=1,
        chunk_rows=chunk_rows,
        chunk_bytes=chunk_bytes.at(chunk_rows),
        draw_bytes=row_bytes(spec) + assumed.KEY_BYTES + assumed.PROBABILITY_BYTES,
        snapshot_bytes=snapshot_bytes,
        snapshot_copies_per_host=False,
        batch_size=config.learner.batch_size,
        updates_per_call=updates_per_call,
        publish_period=config.learner.publish_period_learner_steps,
        samples_per_insert=config.replay.samples_per_insert,
    )


def workloads(figures: Figures, config: Config, spec: EnvironmentSpec) -> list[Workload]:
    """The preset as it comes, without its limiter, with a slow environment; and frames."""
    snapshot_bytes = figures.detail("call_cost", f"snapshot, MLP {NETWORKS[0]}, thread", "bytes")
    costs = measured_costs(figures, config, snapshot_bytes)
    chunk_bytes = chunk_line(figures)
    preset = preset_fleet(config, spec, chunk_bytes, snapshot_bytes)
    large = figures.record("replay_saturation")["settings"]["chunk"]

    def larger_chunk(fleet: Fleet) -> Fleet:
        rows = max(large, fleet.chunk_rows)
        return replace(fleet, chunk_rows=rows, chunk_bytes=chunk_bytes.at(rows))

    free = replace(preset, samples_per_insert=None)
    slow = replace(preset, samples_per_insert=assumed.SLOW_SAMPLES_PER_INSERT)
    slow_costs = replace(costs, env_steps_per_s=assumed.SLOW_ENV_STEPS_PER_S)
    frames, frame_costs = frames_workload(figures, costs)
    return [
        Workload("preset", preset, larger_chunk(preset), costs),
        Workload("free", free, larger_chunk(free), costs),
        Workload("slow", slow, larger_chunk(slow), slow_costs),
        Workload("frames", frames, frames, frame_costs, gpus=1),
    ]


def frames_workload(figures: Figures, costs: Costs) -> tuple[Fleet, Costs]:
    """84×84 frames, each stored and sent once: measured cost per call, assumed cost per byte."""
    chunk_bytes = float(assumed.FRAMES_CHUNK * assumed.FRAMES_ROW_BYTES)
    n_bytes = float(assumed.FRAMES_SNAPSHOT_BYTES)
    per_byte_s = 1.0 / assumed.BYTES_PER_CORE_S
    row_s, draw_s = assumed.FRAMES_ROW_BYTES * per_byte_s, assumed.FRAMES_DRAW_BYTES * per_byte_s
    thread = snapshot_s(figures, "thread", n_bytes)
    fleet = Fleet(
        n_actors=1,
        n_shards=1,
        chunk_rows=assumed.FRAMES_CHUNK,
        chunk_bytes=chunk_bytes,
        draw_bytes=assumed.FRAMES_DRAW_BYTES,
        snapshot_bytes=n_bytes,
        snapshot_copies_per_host=True,
        batch_size=assumed.FRAMES_BATCH,
        updates_per_call=assumed.FRAMES_UPDATES_PER_CALL,
        publish_period=assumed.FRAMES_PUBLISH_PERIOD,
        samples_per_insert=assumed.FRAMES_SAMPLES_PER_INSERT,
    )
    return fleet, replace(
        costs,
        env_steps_per_s=assumed.FRAMES_ENV_STEPS_PER_S,
        updates_per_s=assumed.FRAMES_UPDATES_PER_S,
        insert_actor=Line(costs.insert_actor.fixed, row_s),
        insert_shard=Line(costs.insert_shard.fixed, row_s),
        sample_learner=Line(costs.sample_learner.fixed, draw_s),
        sample_shard=Line(costs.sample_shard.fixed, draw_s),
        snapshot_learner=thread,
        snapshot_beside=max(0.0, snapshot_s(figures, "process", n_bytes) - thread),
        snapshot_actor=snapshot_s(figures, "receiver", n_bytes),
    )


# Prediction against measurement


def predictions(figures: Figures) -> list[Prediction]:
    """Saturation at each measured number of shards, from one shard's steps up to half load."""
    record = figures.record("replay_saturation")
    settings, usable = record["settings"], record["machine"]["usable_cpus"]
    cell = f"1 shard, chunk {settings['chunk']}"
    steps = light_steps(figures, cell)
    machine = cores_over_calls(steps, ["shards", "clients", "ray"])
    shard = cores_over_calls(steps, ["shards"])
    half_s, saturated_s = (
        figures.median("replay_saturation", f"{cell}, CPU per call, {load}") / 1000
        for load in ("half load", "saturating")
    )
    found = []
    for n_shards in settings["shards"]:
        plural = "shard" if n_shards == 1 else "shards"
        name = f"{n_shards} {plural}, chunk {settings['chunk']}, saturating calls"
        row = figures.row("replay_saturation", name)
        elsewhere = float(row["detail"]["elsewhere cores"])
        bounds = saturating_calls_per_s(usable - elsewhere, machine, n_shards, shard)
        found.append(
            Prediction(
                n_shards=n_shards,
                chunk_rows=settings["chunk"],
                elsewhere=elsewhere,
                measured=(row["median"], row["min"], row["max"]),
                bounds=bounds,
                by_division=(usable - elsewhere) / half_s,
                from_saturated=(usable - elsewhere) / saturated_s,
            )
        )
    return found


def mixed_load(figures: Figures) -> list[Mixed]:
    """Inserts beside samples, at the rates of another program, `replay_through_server.py`."""
    record = figures.record("replay_through_server")
    settings, usable = record["settings"], record["machine"]["usable_cpus"]
    insert_client, insert_shard = insert_lines(figures)
    sample_client, sample_shard = sample_lines(figures)
    found = []
    for n_shards in settings["shards"]:
        name = "1 shard" if n_shards == 1 else f"{n_shards} shards"
        inserted = figures.median("replay_through_server", f"{name}, insert, while sampling")
        sampled = figures.median("replay_through_server", f"{name}, sample, while inserting")
        chunk, draws = settings["chunk"], settings["draws"] / n_shards
        pushes, samples = inserted / chunk, sampled / draws
        shards = pushes * insert_shard.at(chunk) + samples * sample_shard.at(draws)
        clients = pushes * insert_client.at(chunk) + samples * sample_client.at(draws)
        found.append(Mixed(name, shards + clients, usable, shards / n_shards))
    return found


# Memory


def memory(figures: Figures, spec: EnvironmentSpec) -> Memory:
    """Resident bytes of each role's process, and of a stored transition."""
    capacity = assumed.STORED_TRANSITIONS
    leaves = 1 << (capacity - 1).bit_length()
    return Memory(
        actor_rss=figures.median("memory", "actor, RSS") * MB,
        actor_own=figures.median("memory", "actor, USS") * MB,
        shard_rss=figures.median("memory", "replay shard, RSS") * MB,
        learner_rss=figures.median("memory", "learner, RSS") * MB,
        driver_rss=figures.median("call_cost", "process with Ray and torch, RSS") * MB,
        ray_rss=figures.median("replay_saturation", "Ray's own processes, RSS") * MB,
        state_row=row_bytes(spec) + assumed.TIME_BYTES,
        tree_row=2 * TREE_NODE_BYTES * leaves / capacity,
    )


def generate(records: Records) -> str:
    """The whole page."""
    config, spec = resolved_preset("cartpole", {"actors.count": 1})
    figures = Figures(records)
    return page(
        workloads(figures, config, spec),
        predictions(figures),
        mixed_load(figures),
        memory(figures, spec),
        config,
        figures.record("replay_saturation"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON records")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when it differs")
    arguments = parser.parse_args()
    text = generate(read_records(arguments.results))
    if arguments.check:
        if not arguments.out.exists() or arguments.out.read_text() != text:
            sys.exit(f"{arguments.out.name} is not what the records say: run it without --check")
        return
    arguments.out.write_text(text)
    print(f"wrote {arguments.out.name}")


if __name__ == "__main__":
    main()
