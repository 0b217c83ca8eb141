"""The evaluations of an asynchronous run: snapshots from the learner to the evaluator and back.

Called by the asynchronous loop once per tick. One evaluation is under way at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Roles, answer, ask
from qfleet.common.config import NetworkConfig
from qfleet.common.errors import CallLostError, RoleLostError
from qfleet.common.messages import decode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.types import EnvironmentSpec, EvaluationReport, EvaluationRequest

EVALUATE_TIMEOUT_S = 1800.0
EVALUATION_WAIT_S = 1.0
"""How long one question for a snapshot to evaluate stays open at the learner."""


class EvaluationRecord(Protocol):
    """What the evaluations ask of the run's bookkeeping."""

    def evaluation_request(self) -> EvaluationRequest:
        """The next evaluation, on seeds of its own."""
        ...

    def record_evaluation(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """Take in an evaluation of parameters that `params` can give."""
        ...

    def incident(self, text: str, whole_text: str = "") -> None:
        """Something that a user should see."""
        ...


class EvaluationWatch:
    """What waits to be evaluated and what is being evaluated."""

    def __init__(self, roles: Roles, network: NetworkConfig, spec: EnvironmentSpec) -> None:
        self._roles, self._network, self._spec = roles, network, spec
        self.eval_s = 0.0
        """Seconds during which an evaluation was under way."""
        self.due: Any = None
        """The question to the learner for a snapshot that fell due."""
        self.evaluating: Any = None
        """The evaluation under way."""
        self._since_s = 0.0
        self._asked_version = 0
        self._evaluated: Any = None
        self._waiting: Any = None
        """Payloads (`ParamsOffer`)."""

    def ask(self) -> None:
        """Ask the learner for the next snapshot that falls due."""
        self.due = self._ask(EVALUATION_WAIT_S)

    def _ask(self, timeout_s: float) -> Any:
        """A question after what is newer than all that was told: it may be put again."""
        return self._roles.learner.await_evaluation.remote(timeout_s, self._asked_version)

    def take_due(self) -> None:
        """The answer has come: keep it and ask again."""
        with suppress(CallLostError):
            self._keep(answer(self.due, "driver", "the learner"))
        self.ask()

    def take_last_due(self, timeout_s: float) -> None:
        """At the end: what fell due and was not told yet."""
        self._keep(ask(lambda: self._ask(0.0), "driver", "the learner", timeout_s))

    def _keep(self, told: tuple[int, Any] | None) -> None:
        """The newest snapshot to evaluate; one that waited behind an evaluation is dropped."""
        if told is not None:
            self._asked_version, self._waiting = told

    def go_on(self, record: EvaluationRecord) -> None:
        """Take the evaluation that has ended, start the one that waits."""
        if self.evaluating is not None:
            ready, _ = import_ray().wait([self.evaluating], timeout=0)
            if not ready:
                return
            self._take(record)
        if self._waiting is not None:
            self._evaluated, self._waiting = self._waiting, None
            request = list(record.evaluation_request())
            self.evaluating = self._roles.evaluator.evaluate.remote(self._evaluated, request)
            self._since_s = time.monotonic()

    def finish(self, record: EvaluationRecord) -> None:
        """A run that spent its budget is still scored on what it had to evaluate."""
        while self.evaluating is not None or self._waiting is not None:
            if self.evaluating is not None:
                self._take(record, EVALUATE_TIMEOUT_S)
            self.go_on(record)

    def _take(self, record: EvaluationRecord, timeout_s: float = 60.0) -> None:
        """The evaluation under way, waited for if need be."""
        ref, self.evaluating = self.evaluating, None
        try:
            report = EvaluationReport(*answer(ref, "driver", "the evaluator", timeout_s))
        except CallLostError:
            self._waiting = self._waiting or self._evaluated
            return
        except RoleLostError as error:
            record.incident(f"{error}; a new one takes its place")
            self._roles.create_evaluator()
            return
        self.eval_s += time.monotonic() - self._since_s
        record.record_evaluation(report, self._evaluated_params)

    def _evaluated_params(self) -> bytes:
        message = self._evaluated
        if not isinstance(message, bytes):
            message = answer(message[0], "driver", "the parameters that were evaluated")
        arrays = decode_snapshot(message).arrays
        return encode_safetensors(arrays, self._network, self._spec)
