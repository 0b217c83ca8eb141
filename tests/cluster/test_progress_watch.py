"""A role that answers and gets nowhere is noticed, one that is held back is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import progress_watch
from qfleet.cluster.progress_watch import ProgressWatch, StandStill
from qfleet.common.errors import WaitTimeoutError


def test_stand_still_counts_only_while_at_work_and_unmoved():
    still = StandStill()
    seen = [
        still.observe(value, is_working, now_s)
        for value, is_working, now_s in (
            (10, True, 100.0),
            (10, True, 130.0),
            (10, False, 160.0),  # held back: that is no hanging
            (10, True, 170.0),
            (11, True, 200.0),
            (11, True, 201.5),
        )
    ]
    assert seen == [0.0, 30.0, 0.0, 10.0, 0.0, 1.5]


def test_watch_of_a_role_that_answers_and_stands_still_says_who_and_what_to_do(monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    answers = iter([3, 4, 4, None, 4])
    monkeypatch.setattr(progress_watch, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    watch = ProgressWatch(lambda: None, "actor 2", lambda steps: steps, 45.0, ": raise the limit")
    monkeypatch.setattr(watch, "_call", SimpleNamespace(poll=lambda now_s: next(answers)))
    for now_s in (100.0, 130.0, 175.0, 190.0):
        clock.now_s = now_s
        watch()
    clock.now_s = 190.5
    with pytest.raises(WaitTimeoutError, match="actor 2 answers, but has got nowhere for 60 s: ra"):
        watch()
