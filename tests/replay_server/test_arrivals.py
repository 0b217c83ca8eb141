import json

import numpy as np

from qfleet.common.types import ChunkId, TransitionChunk
from qfleet.replay_server.arrivals import Arrival, Arrivals


def chunk(seq, first, rows, incarnation=0, slot=0):
    return TransitionChunk(
        ChunkId("run", slot, incarnation, seq),
        {"action": np.zeros(rows, np.int32)},
        None,
        1,
        rows,
        first_transition=first,
    )


def test_tallies_count_each_incarnation_by_itself():
    arrivals = Arrivals()
    arrivals.stored(chunk(0, 0, 10), 10)
    arrivals.stored(chunk(2, 15, 5), 4)
    arrivals.stored(chunk(0, 0, 7, slot=3), 7)
    arrivals.stored(chunk(0, 0, 3, incarnation=2), 3)
    arrivals.stored(chunk(1, 3, 0, incarnation=2), 0)

    assert arrivals.listed() == [
        Arrival(0, 0, 20, 14, 1),
        Arrival(0, 2, 3, 3, 0),
        Arrival(3, 0, 7, 7, 0),
    ]


def test_chunk_that_comes_too_late_twice_is_refused_once():
    arrivals = Arrivals()
    arrivals.stored(chunk(0, 0, 10), 10)
    for _ in range(2):
        arrivals.refused(chunk(1, 10, 6))

    assert arrivals.listed() == [Arrival(0, 0, 16, 10, 6)]


def test_capture_round_trip_through_json_is_exact():
    arrivals, copy = Arrivals(), Arrivals()
    arrivals.stored(chunk(0, 0, 10), 10)
    arrivals.refused(chunk(1, 10, 6))

    copy.restore(json.loads(json.dumps(arrivals.capture())))

    assert copy.listed() == arrivals.listed()
    copy.refused(chunk(1, 10, 6))
    assert copy.listed() == arrivals.listed()
