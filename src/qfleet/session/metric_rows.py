"""The values of one row of metrics.jsonl and TensorBoard, from the roles' counters.

Called by the session; pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from qfleet.common.reports import BlockStats
from qfleet.common.types import EpisodeSummary
from qfleet.fleets.fleet import FleetReport
from qfleet.run_files import metrics


def metric_row(
    report: FleetReport,
    recent: Sequence[EpisodeSummary],
    *,
    env_steps_per_s: float,
    learner_steps_per_s: float,
    has_ladder: bool,
) -> dict[str, float]:
    """Values by metric name; `recent` are the newest training episodes, if there are any yet.

    With the ladder each sub-environment has an ε of its own, and their mean is told; a schedule's ε
    is that of the newest episode, as its line says.
    """
    learner = report.learner
    values = {
        metrics.LEARNER_LOSS: learner.loss,
        metrics.LEARNER_Q_MEAN: learner.q_mean,
        metrics.LEARNER_TD_ERROR_ABS_MEAN: learner.td_error_abs_mean,
        metrics.LEARNER_GRAD_NORM: learner.grad_norm,
        metrics.LEARNER_STEPS_PER_S: learner_steps_per_s,
        metrics.ACTOR_ENV_STEPS_PER_S: env_steps_per_s,
        metrics.REPLAY_SIZE: float(sum(s.size for s in report.shards)),
        metrics.REPLAY_SAMPLE_AGE_S: report.sample_age_s,
    }
    if report.actors:
        lags = [learner.learner_steps - a.params_learner_step for a in report.actors]
        values[metrics.ACTOR_PARAMS_LAG_LEARNER_STEPS] = max(0.0, sum(lags) / len(lags))
    ratio = samples_per_insert(report)
    if ratio is not None:
        values[metrics.REPLAY_SAMPLES_PER_INSERT] = ratio
    if recent:
        n = len(recent)
        values[metrics.ROLLOUT_RETURN_MEAN] = sum(e.episode_return for e in recent) / n
        values[metrics.ROLLOUT_LENGTH_MEAN] = sum(e.length_env_steps for e in recent) / n
        mean_epsilon = sum(e.epsilon for e in recent) / n
        values[metrics.ROLLOUT_EPSILON] = mean_epsilon if has_ladder else recent[-1].epsilon
    return values


def block_row(block: BlockStats) -> dict[str, float]:
    """Values of one block by metric name."""
    return {
        metrics.LEARNER_LOSS: block.loss,
        metrics.LEARNER_Q_MEAN: block.q_mean,
        metrics.LEARNER_TD_ERROR_ABS_MEAN: block.td_error_abs_mean,
        metrics.LEARNER_GRAD_NORM: block.grad_norm,
    }


def samples_per_insert(report: FleetReport) -> float | None:
    """Transitions drawn per transition stored, over the whole run; None before any is stored."""
    inserted = sum(s.inserted for s in report.shards)
    return sum(s.sampled for s in report.shards) / inserted if inserted else None
