"""Asynchronous runs over real processes: accounts, ratio, target syncs, and processes that die."""

from __future__ import annotations

import itertools

import psutil
import pytest

from qfleet.settings.config_auto import resolve_config
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


@pytest.mark.timeout(120)
def test_async_run_keeps_its_accounts_ratio_and_targets(
    tmp_path, config, outcomes, ray_started, capsys
):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    evaluations = []
    wanted = config(
        actors__count=2,
        replay__shards=2,
        replay__sampling="prioritized",
        replay__samples_per_insert=4.0,
        run__max_learner_steps=1000,
        # Sizes that do not grow: what is under way when the gate opens at the end is bounded.
        actors__chunk_transitions=32,
        learner__max_blocks_per_request=1,
    )
    summary = train(wanted, evaluations.append, run_dir=tmp_path / "run")
    assert (summary.status, summary.exit_code) == ("finished", 0)
    assert (summary.schedule, summary.stop_reason) == ("async", "max_learner_steps")
    assert summary.learner_steps == 1000
    assert list(summary.phases_s) == [
        *("imports", "ray", "roles", "first update", "training", "last checkpoint"),
        *("shutdown", "final score", "artifacts"),
    ]
    assert sum(summary.phases_s.values()) == summary.wall_s

    # Every episode was told of once, none was lost between two answers.
    session = outcomes[0].session
    assert session.counters.totals.episodes == sum(
        stats.episodes for stats in session.report.shards
    )
    monitor = (tmp_path / "run" / "monitor.csv").read_text().splitlines()
    assert len(monitor) == 2 + session.counters.totals.episodes

    accounting = summary.accounting
    assert accounting.is_balanced
    assert accounting.produced > 0
    assert accounting.lost == accounting.rejected == 0

    # Both sides stay within the window around 4 draws per insert, but for what was in flight.
    resolved = resolve_config(wanted, None, cpus=2, gpus=0)
    inserted = accounting.resident + accounting.evicted
    sampled = summary.samples_per_insert * inserted
    error = 4.0 * (inserted - 100) - sampled
    assert resolved.actors.max_chunk_transitions == 32
    chunk = 4.0 * 32
    request = resolved.learner.updates_per_call * 16
    window = resolved.replay.limiter_tolerance_samples
    assert -2 * (window + request) <= error <= 2 * (window + 2 * chunk)
    assert sampled >= 1000 * 16

    log = outcomes[0].outcome.target_syncs
    assert [step for step, _ in log["syncs"]] == list(range(0, 1001, 20))
    versions = [version for _, version in log["syncs"]]
    assert versions == sorted(set(versions))
    assert list(log["acknowledged"]) == [0, 1]
    for acted in log["acknowledged"].values():
        # From the first one on; what was replaced before an actor asked was never acted with.
        assert acted[0] == versions[0]
        assert acted == sorted(set(acted) & set(versions))
        assert acted[-1] >= versions[len(versions) // 2]
    assert summary.target_syncs == len(versions)

    assert [report.learner_step for report in evaluations][-1] == 1000
    assert all(b > a for a, b in itertools.pairwise(r.params_version for r in evaluations))
    assert summary.params_version >= evaluations[-1].params_version

    assert ray_started.is_initialized()
    assert ray_started.util.list_named_actors() == []
    assert "joins the Ray of this program" in capsys.readouterr().out
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    assert not [c for c in left if any("multiprocessing" in word for word in c.cmdline())]
