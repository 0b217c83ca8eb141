"""Memory of each role and of stored transitions, for docs/scaling.md.

Used by `scaling_page.py`; the figures come from `scaling.py` and `scaling_assumptions.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import scaling_assumptions as assumed
from report import markdown_table
from scaling_tables import amount

from qfleet.bench.bench_record import number


class Memory(NamedTuple):
    """Bytes."""

    actor_rss: float
    actor_own: float
    shard_rss: float
    learner_rss: float
    driver_rss: float
    ray_rss: float
    state_row: float
    tree_row: float


def memory_tables(memory: Memory, actor_cpus: float) -> list[str]:
    """Per role, for a million transitions, and of a fleet's actors."""
    stored = assumed.STORED_TRANSITIONS
    roles = [
        ["actor", amount(memory.actor_rss), f"{amount(memory.actor_own)} of it its own"],
        ["replay shard", amount(memory.shard_rss), "with an all but empty memory"],
        ["learner", amount(memory.learner_rss), "on a CPU"],
        ["driver", amount(memory.driver_rss), "a process with Ray and torch"],
        ["Ray's own processes", amount(memory.ray_rss), "on each host"],
    ]
    frames = assumed.FRAMES_ROW_BYTES + assumed.TIME_BYTES
    stacks = 2 * assumed.STACK * assumed.FRAME_BYTES + assumed.SCALAR_BYTES + assumed.TIME_BYTES
    floats = stacks + 3 * 2 * assumed.STACK * assumed.FRAME_BYTES
    kinds = {
        "CartPole state, uniform": memory.state_row,
        "CartPole state, prioritized": memory.state_row + memory.tree_row,
        "84×84 frames, each once": frames,
        "84×84 frames, both stacks of four as bytes": stacks,
        "84×84 frames, both stacks of four as float32": floats,
    }
    rows = [[name, number(size), amount(size * stored)] for name, size in kinds.items()]
    fleets = []
    for n in assumed.SIZES:
        hosts = math.ceil(n * actor_cpus / assumed.CORES_PER_HOST)
        shared = hosts * (memory.actor_rss - memory.actor_own)
        fleets.append([number(n), number(hosts), amount(n * memory.actor_own + shared)])
    return [
        *markdown_table(["role", "resident", ""], roles),
        "",
        *markdown_table([f"{stored:,} transitions", "bytes each", "together"], rows),
        "",
        *markdown_table(["actors", "on hosts", "memory of all actors"], fleets),
    ]
