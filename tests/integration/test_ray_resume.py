"""An asynchronous run that is resumed: no other parameters, no burst, no jump of ε, no drop.

The scenario is ray-project/ray#53878: CartPole's return fell from 123 to 22 after a restore.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import qfleet
from qfleet.settings.config_auto import resolve_config
from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

DECAY_ENV_STEPS = 600
RATIO = 8.0


def metric_rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(120)
def test_async_resume_continues_parameters_ratio_epsilon_and_return(tmp_path, config):
    run_dir = tmp_path / "run"

    def budget(learner_steps):
        return config(
            network__hidden_sizes=[32],
            actors__envs_per_actor=4,
            actors__epsilon_schedule="linear",
            actors__epsilon_end=0.02,
            actors__epsilon_decay_env_steps=DECAY_ENV_STEPS,
            replay__samples_per_insert=RATIO,
            learner__learning_rate=1e-3,
            eval__solved_at_return=None,
            metrics__period_s=0.05,
            run__max_learner_steps=learner_steps,
        )

    first = train(budget(1000), run_dir=run_dir)
    before = qfleet.evaluate(qfleet.load_policy(run_dir / "latest"), "CartPole-v1", episodes=50)
    rows_before = len(metric_rows(run_dir))

    # No update is left to make: what the resumed learner holds is what was saved, bit for bit.
    unchanged = train(budget(1000), resume=str(run_dir))
    assert unchanged.params_sha256 == first.params_sha256
    after = qfleet.evaluate(qfleet.load_policy(run_dir / "latest"), "CartPole-v1", episodes=50)
    standard_error = float(np.hypot(before.std(), after.std()) / np.sqrt(50))
    assert after.mean() >= before.mean() - 2 * standard_error

    resumed = train(budget(2000), resume=str(run_dir))
    assert resumed.resume_kind == "new episodes (async)"
    assert resumed.learner_steps == 2000
    assert resumed.env_steps > first.env_steps

    # The limiter went on with its counts. Before the resume at most this much learning was paid for
    # and not done (the gate is open at a run's end, so that no transition is lost on its way); a
    # limiter that forgot what was drawn would allow all 2000 updates without a new transition.
    replay = resolve_config(budget(2000), None, cpus=2, gpus=0).replay

    def samples_allowed(summary):
        inserted = summary.accounting.resident + summary.accounting.evicted
        paid = RATIO * (inserted - replay.min_size_to_sample)
        return paid + replay.limiter_tolerance_samples

    assert samples_allowed(first) < 2000 * 16 <= samples_allowed(resumed)
    assert resumed.accounting.is_balanced

    # ε went on: the schedule had ended before, and no episode explores as at the start again.
    assert first.env_steps > DECAY_ENV_STEPS
    new_rows = metric_rows(run_dir)[rows_before:]
    epsilons = [row["rollout/epsilon"] for row in new_rows if "rollout/epsilon" in row]
    assert epsilons
    assert max(epsilons) == pytest.approx(0.02)
