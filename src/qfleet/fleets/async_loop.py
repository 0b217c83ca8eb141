"""The driver's part of an asynchronous run: start the roles' loops, watch, evaluate, checkpoint.

Called by the composition root. The data never passes here: actors push to the replay shards and
the learner pulls from them. Every question to a role has a timeout; a role that stops answering is
dead. The driver is the only owner of Ray actors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Waiting, answer, ask, first_line
from qfleet.cluster.waits import ask_checks
from qfleet.common.capture_stream import Streams, decode_capture
from qfleet.common.errors import CallLostError, RoleLostError, WaitTimeoutError
from qfleet.common.params import encode_safetensors
from qfleet.common.reports import LearnerStats
from qfleet.common.threads import with_lowered_priority
from qfleet.common.types import Array
from qfleet.fleets.actor_watch import ActorWatch
from qfleet.fleets.cuts import init_learner_params, restore_learner_and_replay
from qfleet.fleets.evaluation_watch import EvaluationRecord, EvaluationWatch
from qfleet.fleets.fleet import FleetReport, make_report
from qfleet.fleets.started_roles import StartedRoles
from qfleet.fleets.supervisor import StallWatch

TICK_S = 0.05
DRAIN_TIMEOUT_S = 5.0
"""For the last words of all roles together."""


class AsyncSession(EvaluationRecord, Protocol):
    """What the loop asks of the run's bookkeeping."""

    def stop_reason(self) -> str | None:
        """Why to stop now, or None."""
        ...

    def observe(self, report: FleetReport) -> None:
        """Take in the roles' counters."""
        ...

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written now."""
        ...

    def save_checkpoint(self, files: Streams, params: bytes, learner_step: int) -> None:
        """Commit a checkpoint of that learner step."""
        ...


class AsyncLoop(StartedRoles):
    """One asynchronous run over Ray."""

    def _start(self, incarnation: int, waiting: Waiting) -> None:
        super()._start(incarnation, waiting)
        self._actors = ActorWatch(self.roles, self._plans.fleet, incarnation)
        self._evaluations = EvaluationWatch(self.roles, self._plans, self._spec)
        self._stall_watch = StallWatch()
        self._learner_status: dict[str, Any] | None = None
        self._shard_reports: dict[int, dict[str, Any]] = {}
        self._learner_run: Any = None

    @property
    def eval_s(self) -> float:
        """Seconds during which an evaluation was under way."""
        return self._evaluations.eval_s

    def restore(self, files: Mapping[str, memoryview]) -> FleetReport:
        """Continue from a cut; actors start new episodes, so no open window is ever resumed."""
        restore_learner_and_replay(self.roles, files)
        return self.report(with_actors=False)

    def init_params(self, arrays: dict[str, Array]) -> None:
        """Begin with another run's parameters; before `run`."""
        init_learner_params(self.roles, arrays)

    def keep_versions_above(self, version: int) -> None:
        """Versions never go backwards, also when the learner was rolled back."""
        learner = self.roles.learner
        ask(lambda: learner.keep_versions_above.remote(version), "driver", "the learner")

    def run(self, session: AsyncSession) -> str:
        """Train until the session or the budget says stop; returns the reason.

        Raises:
            RoleLostError: when the learner or a shard died, or too few actors are left.
            QfleetError: what a role itself raised.
        """
        self._actors.start()
        self._learner_run = self.roles.learner.run.remote()
        self._evaluations.ask()
        polls = {
            "learner": PolledCall(self.roles.learner.status.remote, "the learner"),
            **{
                f"replay-{i}": PolledCall(partial(self._ask_report, i), f"replay shard {i}")
                for i in range(len(self.roles.shards))
            },
        }
        try:
            while True:
                reason = self._tick(session, polls)
                if reason is not None:
                    break
        except (RoleLostError, WaitTimeoutError, SystemExit):
            raise  # the roles are to be ended anyway: nobody waits for their last words
        except BaseException:
            self._drain(session, polls)
            raise
        self._drain(session, polls)
        if reason.startswith("max_"):
            self._evaluations.finish(session)
        return reason

    def _tick(self, session: AsyncSession, polls: dict[str, PolledCall]) -> str | None:
        evaluations = self._evaluations
        refs = [self._learner_run, evaluations.due, *self._actors.runs]
        if evaluations.evaluating is not None:
            refs.append(evaluations.evaluating)
        ready, _ = import_ray().wait(refs, timeout=TICK_S, fetch_local=False)
        now_s = time.monotonic()
        ask_checks(now_s)
        for ref in ready:
            if ref is evaluations.due:
                evaluations.take_due()
            elif ref is self._learner_run:
                if self._learner_has_ended():
                    self._poll_all(session, polls, now_s)
                    return session.stop_reason() or "max_learner_steps"
            elif ref is not evaluations.evaluating:  # `go_on` takes that
                self._actors.bury(ref, session.incident, self._learner_steps, now_s)
        self._poll_all(session, polls, now_s)
        evaluations.go_on(session, now_s)
        self._actors.fill_slots(session.incident, now_s)
        if session.checkpoint_due() and not any(p.hesitates(now_s) for p in polls.values()):
            # On a full machine the roles' work comes first: a cut must not hold up inserts.
            with_lowered_priority(lambda: self.checkpoint(session))
        return session.stop_reason()

    def _learner_has_ended(self) -> bool:
        """Whether its loop came to its end; a call that was lost is made again."""
        try:
            answer(self._learner_run, "driver", "the learner")
        except CallLostError:
            self._learner_run = self.roles.learner.run.remote()
            return False
        return True

    def _poll_all(self, session: AsyncSession, polls: dict[str, PolledCall], now_s: float) -> None:
        for name, poll in polls.items():
            result = poll.poll(now_s)
            if result is not None:
                self._take_answer(name, result)
        self._actors.poll(session.incident, now_s)
        if self._learner_status and len(self._shard_reports) == len(self.roles.shards):
            report = self._newest_report()
            session.observe(report)
            played = sum(actor.env_steps for actor in report.actors)
            self._stall_watch.observe(played, report.learner.learner_steps, now_s)

    @property
    def _learner_steps(self) -> int:
        status = self._learner_status
        return 0 if status is None else LearnerStats(*status["stats"]).learner_steps

    def _take_answer(self, name: str, result: dict[str, Any]) -> None:
        """Keep the newest counters, and every episode until the session has seen it."""
        if name == "learner":
            self._learner_status = result
            return
        result = self._new_only(result)
        earlier = self._shard_reports.get(result["shard"])
        if earlier is not None:
            result["episodes"] = [*earlier["episodes"], *result["episodes"]]
        self._shard_reports[result["shard"]] = result

    def _newest_report(self) -> FleetReport:
        assert self._learner_status is not None
        shards = [self._shard_reports[i] for i in sorted(self._shard_reports)]
        report = make_report(self._learner_status, shards, [])
        for shard in shards:
            shard["episodes"] = []
        report.actors.extend(self._actors.reports)
        report.ended.extend(self._actors.ended)
        return report

    def checkpoint(self, session: AsyncSession) -> None:
        """One cut: the learner between two blocks, then every shard."""
        files = self.capture(self._plans.fleet.checkpoints_hold_replay)
        learner = decode_capture(b"".join(files["learner.qflt"]))
        arrays = {
            name.removeprefix("online/"): array
            for name, array in learner.arrays.items()
            if name.startswith("online/")
        }
        params = encode_safetensors(arrays, self._plans.learner.network, self._spec)
        # The step of the cut itself: the learner has gone on since the last report.
        session.save_checkpoint(files, params, int(learner.meta["learner_steps"]))

    def _drain(self, session: AsyncSession, polls: dict[str, PolledCall]) -> None:
        """Stop the loops, take the last counters; what does not answer in time stays uncounted."""
        ray, ends_s = import_ray(), time.monotonic() + DRAIN_TIMEOUT_S

        def left_s() -> float:
            return max(0.0, ends_s - time.monotonic())

        try:
            stops = [self.roles.learner.request_stop]
            stops += [self.roles.actors[slot].request_stop for slot in self._actors.runs.values()]
            stops += [shard.open_gate for shard in self.roles.shards]
            self._tell_all(stops, ends_s)
            ray.wait([self._learner_run], timeout=left_s())
            runs = list(self._actors.runs)
            ended, _ = ray.wait(runs, num_returns=len(runs), timeout=left_s())
            for ref in ended:
                self._actors.take(ray.get(ref, timeout=1.0), is_final=True)
            self._evaluations.take_last_due(ends_s)
            for name, poll in polls.items():
                self._take_answer(name, poll.last_answer(ends_s))
            session.observe(self._newest_report())
        except (ray.exceptions.RayError, RoleLostError, WaitTimeoutError) as error:
            session.incident(f"the last counters are missing: {first_line(error)}")

    def _tell_all(self, methods: list[Any], ends_s: float) -> None:
        """Call them all at once, and again those whose call was lost."""
        refs = [method.remote() for method in methods]
        for method, ref in zip(methods, refs, strict=True):
            try:
                answer(ref, "driver", "a role to stop", max(0.0, ends_s - time.monotonic()))
            except CallLostError:
                method.remote()
            except (RoleLostError, WaitTimeoutError):
                continue  # its last counters will be missing
