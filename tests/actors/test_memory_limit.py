import pytest

from qfleet.actors.memory_limit import PERIOD_S, MemoryLimit, resident_bytes
from qfleet.common.errors import EnvironmentFailedError


class Process:
    """Says how much memory it holds, and counts how often it was asked."""

    def __init__(self, gb):
        self.gb, self.asked, self.now_s = gb, 0, 100.0

    def measure_bytes(self):
        self.asked += 1
        return int(self.gb * 1e9)

    def clock(self):
        return self.now_s

    def limit(self, max_memory_gb):
        return MemoryLimit(max_memory_gb, self.measure_bytes, self.clock)


def test_limit_is_measured_now_and_then():
    process = Process(1.0)
    limit = process.limit(2.0)

    assert [limit.is_exceeded() for _ in range(5)] == [False] * 5
    assert process.asked == 1
    process.gb = 2.5
    assert not limit.is_exceeded()
    process.now_s += PERIOD_S
    assert limit.is_exceeded()
    assert process.asked == 2
    assert "actors.max_memory_gb = 2 allows" in str(limit.error())
    assert limit.error().exit_code == 5


def test_without_a_limit_nothing_is_measured():
    process = Process(1000.0)
    limit = process.limit(None)

    limit.check_start(0)
    assert not limit.is_exceeded()
    assert process.asked == 0


def test_limit_that_leaves_no_room_is_refused_at_the_start():
    Process(0.2).limit(0.3).check_start(1)
    with pytest.raises(
        EnvironmentFailedError, match=r"actor 1 needs 0\.31 GB .*max_memory_gb = 0\.3 .*raise it"
    ):
        Process(0.31).limit(0.3).check_start(1)


def test_resident_bytes_grow_with_what_is_held():
    before = resident_bytes()
    held = bytearray(50_000_000)

    assert resident_bytes() - before > 40_000_000
    assert len(held) == 50_000_000
