"""The evaluations of an asynchronous run: snapshots from the learner to the evaluator and back.

Called by the asynchronous loop once per tick. One evaluation is under way at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from qfleet.cluster.answers import answer, ask_by
from qfleet.cluster.plan import RunPlans
from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.progress_watch import StandStill
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Roles
from qfleet.cluster.waits import ask_checks
from qfleet.common.errors import CallLostError, RoleLostError, WaitTimeoutError
from qfleet.common.messages import decode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.reports import EvaluationReport, EvaluationRequest
from qfleet.common.types import EnvironmentSpec

MAX_DEATHS_WITHOUT_AN_EVALUATION = 5
LAST_START_TIMEOUT_S = 20.0
"""At the end of a run, for an evaluator that has just taken the place of another one."""
LATE_S = 0.5
"""An evaluator that says twice, so long apart, that it plays nothing has not heard of the
evaluation, or its answer was lost."""
TICK_S = 0.05
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

    def stop_reason(self) -> str | None:
        """Why to stop now, or None."""
        ...


class EvaluationWatch:
    """What waits to be evaluated and what is being evaluated, and whether the evaluator lives."""

    def __init__(self, roles: Roles, plans: RunPlans, spec: EnvironmentSpec) -> None:
        self._roles, self._spec = roles, spec
        self._network = plans.evaluator.network
        self._step_timeout_s = plans.fleet.step_timeout_s
        self.eval_s = 0.0
        """Seconds during which an evaluation was under way."""
        self.due: Any = None
        """The question to the learner for a snapshot that fell due."""
        self.evaluating: Any = None
        """The evaluation under way."""
        self.steps = 0
        """Of the newest evaluator."""
        self._since_s = 0.0
        self._idle_since_s = math.inf
        self._asked_version = 0
        self._evaluated: Any = None
        self._waiting: Any = None
        """Payloads (`ParamsOffer`)."""
        self._deaths = 0
        self._steps = StandStill()
        self._ping = self._new_ping()

    def _new_ping(self) -> PolledCall:
        evaluator, name = self._roles.evaluator, self._roles.evaluator_name

        def ping() -> Any:
            return evaluator.ping.remote(self._roles.places.of(name) is None)

        return PolledCall(ping, "the evaluator", has_answered=False)

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

    def take_last_due(self, ends_s: float) -> None:
        """At the end: what fell due and was not told yet."""
        self._keep(ask_by(lambda: self._ask(0.0), "driver", "the learner", ends_s))

    def _keep(self, told: tuple[int, Any] | None) -> None:
        """The newest snapshot to evaluate; one that waited behind an evaluation is dropped."""
        if told is not None:
            self._asked_version, self._waiting = told

    def go_on(self, record: EvaluationRecord, now_s: float) -> None:
        """Take the evaluation that has ended, start the one that waits, look after the evaluator.

        Raises:
            RoleLostError: when evaluators die one after the other without an evaluation.
        """
        if self.evaluating is not None:
            ready, _ = import_ray().wait([self.evaluating], timeout=0)
            if ready:
                self._take(record)
        self._look_after(record, now_s)
        if self._waiting is not None and self.evaluating is None:
            self._evaluated, self._waiting = self._waiting, None
            request = list(record.evaluation_request())
            self.evaluating = self._roles.evaluator.evaluate.remote(self._evaluated, request)
            self._since_s, self._idle_since_s = now_s, math.inf

    def _look_after(self, record: EvaluationRecord, now_s: float) -> None:
        """A new evaluator at once when it is dead, silent or hangs; it takes nobody's CPU."""
        try:
            result = self._ping.poll(now_s)
        except (RoleLostError, WaitTimeoutError) as error:
            self._replace(str(error), record)
            return
        if result is None:
            return
        if "place" in result:
            self._roles.tells_place(
                self._roles.evaluator_name, self._roles.evaluator, result["place"]
            )
        self.steps = result["steps"]
        self._idle_since_s = math.inf if result["is_playing"] else min(now_s, self._idle_since_s)
        if self.evaluating is not None and now_s - self._idle_since_s > LATE_S:
            self._evaluate_again()
        still_s = self._steps.observe(result["steps"], self.evaluating is not None, now_s)
        if still_s > self._step_timeout_s:
            self._replace(
                f"the evaluator's environments have been in one step or reset for {still_s:.0f} s; "
                f"run.step_timeout_s is {self._step_timeout_s:g}",
                record,
            )

    def lose_host(self, reason: str, record: EvaluationRecord) -> None:
        """The evaluator's host is lost."""
        self._replace(f"the evaluator is lost: {reason}", record)

    def _replace(self, reason: str, record: EvaluationRecord) -> None:
        self._deaths += 1
        if self._deaths >= MAX_DEATHS_WITHOUT_AN_EVALUATION:
            raise RoleLostError(
                f"{self._deaths} evaluators were lost one after the other; the last one: {reason}"
            )
        if self.evaluating is not None:
            self._evaluate_again()
        self._roles.create_evaluator()
        self._ping, self._steps = self._new_ping(), StandStill()
        record.incident(f"{reason}; a new one takes its place")

    def _evaluate_again(self) -> None:
        """What was being evaluated, unless something newer waits."""
        self.evaluating = None
        self._waiting = self._waiting or self._evaluated

    @property
    def is_busy(self) -> bool:
        """Whether there is something to evaluate or being evaluated."""
        return self.evaluating is not None or self._waiting is not None

    def finish(self, record: EvaluationRecord) -> None:
        """A run that spent its budget is still scored on what it had to evaluate.

        Not without an evaluator that has a place, and not after a signal.
        """
        began_s = time.monotonic()
        while self.is_busy and (record.stop_reason() or "max_").startswith("max_"):
            now_s = time.monotonic()
            ask_checks(now_s)
            if not self._ping.has_answered and now_s - began_s > LAST_START_TIMEOUT_S:
                record.incident("the last evaluation is left out: the evaluator did not start")
                return
            self.go_on(record, now_s)
            time.sleep(TICK_S)

    def _take(self, record: EvaluationRecord) -> None:
        """The evaluation that has ended."""
        ref = self.evaluating
        try:
            report = EvaluationReport(*answer(ref, "driver", "the evaluator"))
        except CallLostError:
            self._evaluate_again()
            return
        except RoleLostError as error:
            self._replace(str(error), record)
            return
        self.evaluating = None
        self._deaths = 0
        self.eval_s += time.monotonic() - self._since_s
        record.record_evaluation(report, self._evaluated_params)

    def _evaluated_params(self) -> bytes:
        message = self._evaluated
        if not isinstance(message, bytes):
            message = answer(message[0], "driver", "the parameters that were evaluated")
        arrays = decode_snapshot(message).arrays
        return encode_safetensors(arrays, self._network, self._spec)
