"""Roles of a lost host go to the watches that replace them; the learner's ends the attempt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster.placing.host_pulse import LostHost
from qfleet.common.errors import RoleLostError
from qfleet.fleets.watches.host_watch import HostWatch


def test_roles_of_a_lost_host_are_replaced_and_the_learner_ends_the_attempt():
    done, said, news = [], [], []
    watch = HostWatch(
        SimpleNamespace(look=lambda now_s: news),
        SimpleNamespace(lose=lambda slot, reason: done.append(("actor", slot, reason))),
        SimpleNamespace(lose_host=lambda index, reason, *_: done.append(("shard", index, reason))),
        SimpleNamespace(lose_host=lambda reason, record: done.append(("evaluator", reason))),
    )
    record = SimpleNamespace(incident=said.append)
    reason = "host h2 has accepted no connection for 6 s"
    news += [LostHost(reason, ["actor-3-1", "evaluator-1", "replay-1"]), "host h4 answers again"]

    watch.go_on(record, 0.0)

    assert done == [("actor", 3, reason), ("evaluator", reason), ("shard", 1, reason)]
    assert said == [
        f"{reason}: it is lost with actor-3-1, evaluator-1, replay-1; the rest goes on",
        "host h4 answers again",
    ]
    news[:] = [LostHost("host h1 is silent", ["learner"])]
    with pytest.raises(RoleLostError, match="the learner is lost: host h1 is silent"):
        watch.go_on(record, 0.0)
