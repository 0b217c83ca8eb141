"""Several replay shards, asynchronous: all of them are drawn from, and every actor plays."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet import training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

CHI_SQUARED = {2: 10.83, 4: 16.27}
"""At p = 0.001, for one shard less in degrees of freedom."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_draws_follow_the_mass_of_every_shard_and_every_actor_plays_to_the_end(
    tmp_path, config, outcomes, shards
):
    run = tmp_path / "run"

    def played_until(**budget):
        summary = training.train(
            config(
                actors__count=4,
                replay__shards=shards,
                replay__samples_per_insert=None,
                **budget,
            ),
            **({"resume": str(run)} if outcomes else {"run_dir": run}),
        )
        assert (summary.status, summary.exit_code) == ("finished", 0)
        return summary, outcomes[-1].session.report

    # Once all are full they are of one mass for good: what is drawn after that is counted between
    # two moments in which nothing moves.
    begun, first = played_until(run__max_learner_steps=1_000_000, run__max_env_steps=8000)
    assert all(stats.size == 2000 // shards for stats in first.shards)
    _, last = played_until(run__max_learner_steps=begun.learner_steps + 3000)

    drawn = np.array(
        [b.sampled - a.sampled for a, b in zip(first.shards, last.shards, strict=True)]
    )
    expected = drawn.sum() / shards
    assert drawn.sum() > 40_000
    assert ((drawn - expected) ** 2 / expected).sum() < CHI_SQUARED[shards]

    played = {slot.slot: slot.env_steps for slot in first.slots}
    assert sorted(played) == [0, 1, 2, 3]
    assert all(slot.env_steps > played[slot.slot] for slot in last.slots)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shards", [pytest.param(2, marks=pytest.mark.slow), 4])
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
