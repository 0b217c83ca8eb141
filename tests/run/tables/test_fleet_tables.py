"""Shards and slots as the summary and `qfleet status` show them."""

from __future__ import annotations

from qfleet.common.reports import LearnerStats
from qfleet.common.types import ReplayStats, SlotStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run.tables.fleet_tables import fleet_tables


def test_tables_are_of_every_shard_and_every_slot_that_played():
    report = FleetReport(
        shards=[
            ReplayStats(50, 80, 640, 30, 50.0, 0, 0, 0, 0),
            ReplayStats(7, 7, 0, 0, 7.0, 0, 0, 0, 0),
        ],
        learner=LearnerStats(10, 3, 1, 0.0, 0.0, 0.0, 0.0),
        actors=[ActorReport(1, 200, 190, 12, 0)],  # slot 0 is dead at this moment
        shard_times=[{"insert_held": 1.25, "sample_held": 0.5}, {}],
        slots=[SlotStats(1, 4, 90, 80, 3, 1), SlotStats(0, 2, 9, 7, 3, 1)],
    )

    tables = fleet_tables(report).model_dump()

    assert tables == {
        "shards": [
            {"inserted": 80, "sampled": 640, "resident": 50, "held_s": 1.75},
            {"inserted": 7, "sampled": 0, "resident": 7, "held_s": 0.0},
        ],
        "slots": [
            {"slot": 0, "env_steps": 9, "produced": 7, "incarnation": 2},
            {"slot": 1, "env_steps": 90, "produced": 92, "incarnation": 4},
        ],
        "roles": [],
    }
