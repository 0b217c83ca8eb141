"""Work with lowered priority: done in a thread of its own, errors and results come back."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from qfleet.common.threads import LOWERED_NICENESS, with_lowered_priority


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="niceness per thread is Linux's")
def test_work_is_nicer_and_the_caller_is_as_before():
    before = niceness()

    assert with_lowered_priority(niceness) == max(before, LOWERED_NICENESS)

    assert niceness() == before


def test_error_in_the_work_reaches_the_caller():
    def fail():
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        with_lowered_priority(fail)
