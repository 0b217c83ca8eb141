"""Evaluate a snapshot and, when it reaches the threshold, confirm it on disjoint seeds.

Called by the local runtime and by the evaluator's Ray shell. Only the confirmation is reported as a
score: the first evaluation chose the snapshot, so its mean is biased upwards.
"""

from __future__ import annotations

from qfleet.actors.evaluator import Evaluator
from qfleet.common.q_functions import QFunction
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.types import ParamsSnapshot


def run_request(
    evaluator: Evaluator,
    q_function: QFunction,
    snapshot: ParamsSnapshot,
    request: EvaluationRequest,
) -> EvaluationReport:
    """The report on `snapshot`, whose parameters `q_function` plays."""
    first, _, first_cut = evaluator.evaluate(q_function, request.episodes, request.seed)
    confirm, confirm_cut = None, 0
    if request.threshold is not None and first.mean() >= request.threshold:
        confirm, _, confirm_cut = evaluator.evaluate(
            q_function, request.confirm_episodes, request.confirm_seed
        )
    return EvaluationReport(
        snapshot.version,
        snapshot.learner_step,
        snapshot.env_steps,
        float(first.mean()),
        float(first.std()),
        len(first),
        None if confirm is None else float(confirm.mean()),
        None if confirm is None else float(confirm.std()),
        0 if confirm is None else len(confirm),
        first_cut,
        confirm_cut,
    )
