"""Ray shell of the evaluator: thin, all decisions are in the core.

Created by the composition root alone. `evaluate` occupies the default concurrency group; the
`control` group answers meanwhile.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from qfleet.actors.confirmation import run_request
from qfleet.actors.evaluator import Evaluator
from qfleet.actors.plan import EvaluatorPlan
from qfleet.actors.remote_params import fetch_snapshot
from qfleet.actors.remote_place import place_of_this_process
from qfleet.actors.role_process import enter_role
from qfleet.common.errors import RoleLostError
from qfleet.common.q_functions import QFunctions
from qfleet.common.reports import EvaluationRequest
from qfleet.common.role_place import read_logs
from qfleet.common.signals import die_of_sigterm
from qfleet.common.threads import limit_threads
from qfleet.common.types import EnvironmentSpec

EVALUATED_TIMEOUT_S = 60.0


class EvaluatorShell:
    """The evaluator process; becomes a Ray actor through `remote_evaluator_class`."""

    def __init__(self, plan_json: str, spec_json: str, import_paths: list[str]) -> None:
        self._plan = enter_role(EvaluatorPlan, plan_json, import_paths)
        die_of_sigterm()
        limit_threads(self._plan.num_cpus)
        spec = EnvironmentSpec.from_json(spec_json)
        self._q_functions = QFunctions(self._plan.network, spec)
        self._is_playing = False
        self._evaluator = Evaluator(
            self._plan.env,
            self._plan.epsilon,
            max_steps_per_episode=self._plan.max_episode_steps,
        )

    @ray.method(concurrency_group="control")
    def ping(self, with_place: bool = False) -> dict[str, Any]:
        """Liveness and progress, and where it runs if asked; answers while `evaluate` plays."""
        told: dict[str, Any] = {
            "pid": os.getpid(),
            "steps": self._evaluator.steps,
            "is_playing": self._is_playing,
        }
        return told | {"place": place_of_this_process()} if with_place else told

    @ray.method(concurrency_group="control")
    def written(self, paths: list[str], offsets: list[int]) -> list[bytes]:
        """What its own log files hold from there on."""
        return read_logs(paths, offsets)

    def evaluate(self, payload: Any, request: list[Any]) -> list[Any]:
        """An `EvaluationReport` as a list, for the snapshot in `payload` (`ParamsOffer`).

        Raises:
            RoleLostError: when the snapshot is gone with its learner.
        """
        self._is_playing = True
        try:
            snapshot = fetch_snapshot(payload, EVALUATED_TIMEOUT_S)
            if snapshot is None:
                raise RoleLostError("the parameters to evaluate are gone: the learner has died")
            q = self._q_functions.of(snapshot.arrays)
            return list(run_request(self._evaluator, q, snapshot, EvaluationRequest(*request)))
        finally:
            self._is_playing = False


def remote_evaluator_class() -> Any:
    """The Ray actor class of `EvaluatorShell`; one control thread beside the playing one."""
    options: dict[str, Any] = {"concurrency_groups": {"control": 1}, "max_restarts": 0}
    return ray.remote(**options)(EvaluatorShell)
