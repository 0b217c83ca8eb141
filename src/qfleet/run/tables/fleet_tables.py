"""What every shard and every actor slot has done, as summary.json and `qfleet status` show it.

Called by the session with each row of metrics, and at the end of a run.
"""

from __future__ import annotations

from qfleet.common.stage_clock import INSERT_HELD, SAMPLE_HELD
from qfleet.fleets.fleet import FleetReport
from qfleet.run_files.summary import FleetTables, ShardRow, SlotRow


def fleet_tables(report: FleetReport) -> FleetTables:
    """The newest report by shard and by slot, over all processes of the run.

    A slot has produced what its shard has stored of it and what its living actor has not sent yet.
    """
    times_by_shard = report.shard_times or [{} for _ in report.shards]
    unsent = {actor.slot: actor.unsent for actor in report.actors}
    return FleetTables(
        shards=[
            ShardRow(
                inserted=stats.inserted,
                sampled=stats.sampled,
                resident=stats.size,
                held_s=round(times.get(INSERT_HELD, 0.0) + times.get(SAMPLE_HELD, 0.0), 3),
            )
            for stats, times in zip(report.shards, times_by_shard, strict=True)
        ],
        slots=[
            SlotRow(
                slot=slot.slot,
                env_steps=slot.env_steps,
                produced=slot.transitions + unsent.get(slot.slot, 0),
                incarnation=slot.incarnation,
            )
            for slot in sorted(report.slots)
        ],
    )
