"""Several replay shards, asynchronous: all of them are drawn from, and every actor plays."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet import training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

CHI_SQUARED = {2: 10.83, 4: 16.27}
"""At p = 0.001, for one shard less in degrees of freedom."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [2, 4])
def test_draws_follow_the_mass_of_every_shard_and_every_actor_plays_to_the_end(
    tmp_path, config, monkeypatch, shards
):
    sessions, seen = [], []
    begin = training.run_session

    def noting(session, outcome):
        sessions.append(session)
        begin(session, outcome)

    def note_when_full(_):
        report = sessions[0].report
        if all(stats.size == 2000 // shards for stats in report.shards):
            seen.append(report)

    monkeypatch.setattr(training, "run_session", noting)
    summary = training.train(
        config(
            actors__count=4,
            replay__shards=shards,
            replay__samples_per_insert=None,
            run__max_learner_steps=6000,
        ),
        note_when_full,
        run_dir=tmp_path / "run",
    )
    assert (summary.status, summary.exit_code) == ("finished", 0)

    # From when all shards were full, and so of one mass, to the end.
    first, last = seen[0], sessions[0].report
    drawn = np.array(
        [b.sampled - a.sampled for a, b in zip(first.shards, last.shards, strict=True)]
    )
    expected = drawn.sum() / shards
    assert drawn.sum() > 10_000
    assert ((drawn - expected) ** 2 / expected).sum() < CHI_SQUARED[shards]

    played = {slot.slot: slot.env_steps for slot in first.slots}
    assert sorted(played) == [0, 1, 2, 3]
    assert all(slot.env_steps > played[slot.slot] for slot in last.slots)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [2, 4])
def test_every_shard_keeps_the_ratio_of_its_own_limiter(tmp_path, config, outcomes, shards):
    summary = training.train(
        config(
            actors__count=4,
            replay__shards=shards,
            replay__samples_per_insert=4.0,
            run__max_learner_steps=1500,
            actors__chunk_transitions=32,
            learner__max_blocks_per_request=1,
        ),
        run_dir=tmp_path / "run",
    )
    assert (summary.status, summary.exit_code, summary.role_restarts) == ("finished", 0, 0)
    for stats in outcomes[0].session.report.shards:
        assert stats.sampled > 1000
        owed = 4.0 * (stats.inserted - -(-100 // shards))
        assert stats.sampled == pytest.approx(owed, rel=0.5)
