"""Writes docs/scaling.md: what 1, 16, 256 and 1000 actors need, computed from the records.

    python benchmarks/scaling.py [--check]

Reads benchmarks/results/*.json and the default preset; the arithmetic is in `scaling_model.py`, the
page around its tables in `scaling_page.py`. What was not measured stands in `ASSUMED`, and the page
says so. `--check` writes nothing and fails when the page is not what records, preset and
assumptions give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import scaling_page
from records import Figures
from report import write_page
from scaling_model import (
    Costs,
    Fleet,
    Line,
    least_squares,
    line_through,
    saturating_calls_per_s,
)
from scaling_page import Prediction, Workload

from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.common.types import EnvironmentSpec, transition_columns
from qfleet.learner.remote_publisher import PERIOD_S

NETWORK = "128-64"
"""About the default preset's, as `call_cost.py` and `publishing_cost.py` name it."""
PULLING_ACTORS = 16
"""Beside which publishing was measured; their number makes no difference."""
FEWEST_STEPS = 3


class Assumed(NamedTuple):
    """What was not measured: change a figure, run it anew."""

    network_bytes_per_s: float = 1.25e9
    """10 Gbit/s at the host with learner and shards."""
    slow_env_steps_per_s: float = 1_000.0
    """Of one actor with a slow environment, and a core of its own."""
    slow_samples_per_insert: float = 1.0


ASSUMED = Assumed()
KEY_BYTES = 16
"""Key and probability of a draw."""


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
        raise SystemExit(f"{cell}: {len(light)} steps up to half load, {FEWEST_STEPS} are needed")
    return light


def cores_over_calls(steps: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> Line:
    """Cores that groups of processes keep busy, as a line over calls/s."""
    return least_squares(
        [(step["acknowledged"], sum(step[f"{group} cores"] for group in groups)) for step in steps]
    )


def call_line(figures: Figures, group: str, names: Mapping[float, str]) -> Line:
    """CPU seconds of a call at one group of processes, over its size."""
    small, large = (
        (size, figures.detail("replay_saturation", name, group) / 1000)
        for size, name in names.items()
    )
    return line_through(small, large)


def measured_costs(figures: Figures, sub_envs: int) -> Costs:
    """All costs of the default preset."""
    settings = figures.record("replay_saturation")["settings"]
    pushes = {
        float(rows): f"1 shard, chunk {rows}, CPU per call, saturating"
        for rows in (settings["small_chunk"], settings["chunk"])
    }
    samples = {
        float(draws): f"1 shard, chunk {settings['chunk']}, CPU per sample of {draws}"
        for draws in sorted(settings["draws"])
    }

    def call_s(name: str) -> float:
        return figures.median("call_cost", name) / 1000

    actor = f"actor, CartPole, {sub_envs} sub-environments"
    published = f"MLP {NETWORK}, {PULLING_ACTORS} actors, process"
    return Costs(
        env_steps_per_s=figures.median("actor_speed", actor),
        updates_per_s=figures.median("learner_speed", "cartpole, update_block, compiled"),
        insert_actor=call_line(figures, "clients", pushes),
        insert_shard=call_line(figures, "shards", pushes),
        sample_learner=call_line(figures, "clients", samples),
        sample_shard=call_line(figures, "shards", samples),
        publish_learner=figures.median("publishing_cost", published) / 1000,
        snapshot_shard=call_s(f"snapshot, MLP {NETWORK}, thread"),
        snapshot_actor=call_s(f"snapshot, MLP {NETWORK}, receiver"),
        ping_driver=call_s("ping, thread"),
        ping_role=call_s("ping, receiver"),
    )


def row_bytes(spec: EnvironmentSpec) -> int:
    """Bytes of one transition's columns."""
    columns = transition_columns(spec)
    return sum(math.prod(c.shape) * int(c.dtype[2:]) for c in columns)


def workloads(figures: Figures) -> list[Workload]:
    """The preset as it comes, without its limiter, and with a slow environment."""
    config, spec = resolved_preset("cartpole", {"actors.count": 1})
    assert isinstance(config.actors.chunk_transitions, int), "resolved"
    assert isinstance(config.learner.updates_per_call, int), "resolved"
    costs = measured_costs(figures, int(config.actors.envs_per_actor))
    chunk = config.actors.chunk_transitions
    preset = Fleet(
        n_actors=1,
        n_shards=1,
        chunk_rows=chunk,
        row_bytes=figures.median("replay_saturation", f"chunk of {chunk}") / chunk,
        draw_bytes=row_bytes(spec) + KEY_BYTES,
        batch_size=config.learner.batch_size,
        updates_per_call=config.learner.updates_per_call,
        publish_period=config.learner.publish_period_learner_steps,
        announce_period_s=PERIOD_S,
        samples_per_insert=config.replay.samples_per_insert,
    )
    slow = replace(preset, samples_per_insert=ASSUMED.slow_samples_per_insert)
    return [
        Workload("preset", preset, costs),
        Workload("free", replace(preset, samples_per_insert=None), costs),
        Workload("slow", slow, replace(costs, env_steps_per_s=ASSUMED.slow_env_steps_per_s)),
    ]


def predictions(figures: Figures) -> list[Prediction]:
    """Saturation at each measured number of shards, from one shard's steps up to half load."""
    record = figures.record("replay_saturation")
    settings, usable = record["settings"], record["machine"]["usable_cpus"]
    steps = light_steps(figures, f"1 shard, chunk {settings['chunk']}")
    machine = cores_over_calls(steps, ["shards", "clients", "ray"])
    shard = cores_over_calls(steps, ["shards"])
    found = []
    for n_shards in settings["shards"]:
        plural = "shard" if n_shards == 1 else "shards"
        name = f"{n_shards} {plural}, chunk {settings['chunk']}, saturating calls"
        row = figures.row("replay_saturation", name)
        cores = usable - float(row["detail"]["elsewhere cores"])
        bounds = saturating_calls_per_s(cores, machine, n_shards, shard)
        measured = (row["median"], row["min"], row["max"])
        found.append(Prediction(n_shards, settings["chunk"], measured, bounds))
    return found


def memory(figures: Figures) -> list[tuple[str, float]]:
    """Resident MB of each role's process, as measured."""
    found = {
        "actor": figures.median("memory", "actor, RSS"),
        "replay shard, all but empty": figures.median("memory", "replay shard, RSS"),
        "learner on a CPU": figures.median("memory", "learner, RSS"),
        "Ray's own processes, on each host": figures.median(
            "replay_saturation", "Ray's own processes, RSS"
        ),
    }
    return list(found.items())


def generate(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    figures = Figures(records)
    return scaling_page.page(
        workloads(figures),
        predictions(figures),
        memory(figures),
        ASSUMED._asdict(),
        figures.record("replay_saturation"),
    )


if __name__ == "__main__":
    write_page(__doc__, "scaling.md", generate)
