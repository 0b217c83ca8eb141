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

from qfleet.cluster.answers import answer, ask, first_line, insist
from qfleet.cluster.placing.host_pulse import HostPulse
from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.waits import ask_checks
from qfleet.common.capture_stream import Streams, decode_capture
from qfleet.common.errors import CallLostError, RoleLostError, WaitTimeoutError
from qfleet.common.params import encode_safetensors
from qfleet.common.reports import LearnerStats
from qfleet.common.threads import with_lowered_priority
from qfleet.common.types import Array
from qfleet.fleets.cuts import init_learner_params, restore_learner_and_replay
from qfleet.fleets.fleet import FleetReport, make_report
from qfleet.fleets.started_roles import StartedRoles
from qfleet.fleets.supervisor import StallWatch
from qfleet.fleets.watches.actor_watch import ActorWatch
from qfleet.fleets.watches.evaluation_watch import EvaluationWatch
from qfleet.fleets.watches.host_watch import HostRecord, HostWatch
from qfleet.fleets.watches.rest_watch import RestWatch
from qfleet.fleets.watches.run_call import RunCall
from qfleet.fleets.watches.shard_watch import ShardWatch

TICK_S = 0.05
DRAIN_TIMEOUT_S = 5.0
"""For the last words of all roles together."""
TELL_TIMEOUT_S = 3.0
"""The part of it until all have heard that they should stop: shorter than the patience after a
signal, for one role that does not answer must not cost the last checkpoint."""
LAST_ANSWERS_S = 1.0
"""The part of it that is left for learner and shards when an actor does not end."""
LAST_RETURN_TIMEOUT_S = 20.0
"""At the end of a run, for a shard that is on its way back: without it no cut can be taken."""


class AsyncSession(HostRecord, Protocol):
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

    def scale_request(self) -> int | None:
        """How many actors somebody asks for now, or None."""
        ...

    def save_checkpoint(self, files: Streams, params: bytes, learner_step: int) -> None:
        """Commit a checkpoint of that learner step."""
        ...


class AsyncLoop(StartedRoles):
    """One asynchronous run over Ray."""

    def _start(self, incarnation: int) -> None:
        super()._start(incarnation)
        self._actors = ActorWatch(self.roles, self._plans.fleet, incarnation)
        self._shards = ShardWatch(self.roles, self._actors, self)
        self._evaluations = EvaluationWatch(self.roles, self._plans, self._spec)
        pulse = HostPulse(import_ray(), self.roles.places)
        self._hosts = HostWatch(pulse, self._actors, self._shards, self._evaluations)
        self._rests = RestWatch(len(self.roles.shards))
        self._stall_watch = StallWatch()
        self._learner_status: dict[str, Any] | None = None
        self._shard_reports: dict[int, dict[str, Any]] = {}

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
        self._learner_run = RunCall(self.roles.learner.run.remote)
        self._evaluations.ask()
        poll = PolledCall(self.roles.learner.status.remote, "the learner")
        try:
            while True:
                reason = self._tick(session, poll)
                if reason is not None:
                    break
        except (RoleLostError, WaitTimeoutError, SystemExit):
            raise  # the roles are to be ended anyway: nobody waits for their last words
        except BaseException:
            self._drain(session, poll)
            raise
        self._bring_shards_back(session)
        self._drain(session, poll)
        if reason.startswith("max_"):
            self._evaluations.finish(session)
        return reason

    def _tick(self, session: AsyncSession, learner: PolledCall) -> str | None:
        evaluations = self._evaluations
        refs = [self._learner_run.ref, evaluations.due, *self._actors.runs]
        if evaluations.evaluating is not None:
            refs.append(evaluations.evaluating)
        ready, _ = import_ray().wait(refs, timeout=TICK_S, fetch_local=False)
        now_s = time.monotonic()
        ask_checks(now_s)
        for ref in ready:
            if ref is evaluations.due:
                evaluations.take_due()
            elif ref is self._learner_run.ref:
                if self._learner_has_ended():
                    self._poll_all(session, learner, now_s)
                    return session.stop_reason() or "max_learner_steps"
            elif ref is not evaluations.evaluating:  # `go_on` takes that
                self._actors.bury(ref, session.incident, self._learner_steps, now_s)
        self._poll_all(session, learner, now_s)
        if self._learner_status and self._learner_status["has_ended"]:
            return session.stop_reason() or "max_learner_steps"  # its last answer may be lost
        if self._learner_steps == 0:  # later a host with other versions is only left out
            self.roles.places.check_versions()
        self._hosts.go_on(session, now_s)
        evaluations.go_on(session, now_s)
        self._shards.go_on(session, self._shard_reports, now_s)
        self._scale(session)
        self._actors.fill_slots(session.incident, now_s, self._shards.is_there)
        self.roles.logs.collect(now_s)
        if session.checkpoint_due() and self._may_checkpoint(learner, now_s):
            # On a full machine the roles' work comes first: a cut must not hold up inserts.
            with_lowered_priority(lambda: self._checkpoint_unless_lost(session))
        return session.stop_reason()

    def close(self) -> None:
        """End every role."""
        self._hosts.close()
        super().close()

    def _scale(self, session: AsyncSession) -> None:
        wanted = session.scale_request()
        if wanted is not None and wanted != self._actors.wanted:
            session.incident(f"scaled from {self._actors.wanted} to {wanted} actors")
            self._actors.scale(wanted)

    def _may_checkpoint(self, learner: PolledCall, now_s: float) -> bool:
        polls = [learner, *self._shards.polls.values()]
        return self._shards.are_all_there and not any(poll.hesitates(now_s) for poll in polls)

    def _learner_has_ended(self) -> bool:
        """Whether its loop came to its end; a call that was lost is made again."""
        try:
            answer(self._learner_run.ref, "driver", "the learner")
        except CallLostError:
            self._learner_run.repeat()
            return False
        return True

    def _poll_all(self, session: AsyncSession, learner: PolledCall, now_s: float) -> None:
        status = learner.poll(now_s)
        if status is not None:
            self._learner_status = status
            self._learner_run.repeat_unless(status["has_begun"])
            writers, resting = self._actors.writers, status["resting"]
            self._rests.observe(writers, resting, self.roles.learner, session.incident)
        for told in self._shards.poll(session, now_s):
            self._take_report(told)
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

    def _take_report(self, report: dict[str, Any]) -> None:
        """Keep a shard's newest counters, and every episode until the session has seen it."""
        report = self._new_only(report)
        earlier = self._shard_reports.get(report["shard"])
        if earlier is not None:
            report["episodes"] = [*earlier["episodes"], *report["episodes"]]
        self._shard_reports[report["shard"]] = report

    def _newest_report(self) -> FleetReport:
        assert self._learner_status is not None
        shards = [self._shard_reports[i] for i in sorted(self._shard_reports)]
        report = make_report(self._learner_status, shards, [], self._evaluations.steps)
        for shard in shards:
            shard["episodes"] = []
        report.actors.extend(self._actors.reports)
        report.ended.extend(self._actors.ended)
        report.hosts.update(self.roles.hosts())
        report.absent.update(self._shards.absent | self._actors.absent)
        return report

    def _checkpoint_unless_lost(self, session: AsyncSession) -> None:
        """One of several shards may be lost meanwhile: the next tick deals with that."""
        try:
            self.checkpoint(session)
        except (RoleLostError, WaitTimeoutError) as error:
            if len(self.roles.shards) == 1:
                raise
            session.incident(f"a checkpoint was given up: {error}")

    def checkpoint(self, session: AsyncSession) -> None:
        """One cut: the learner between two blocks, then every shard."""
        if not self._shards.are_all_there:
            session.incident(
                "a replay shard is not there: the last checkpoint is the one before it was lost"
            )
            return
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

    def _bring_shards_back(self, session: AsyncSession) -> None:
        """Wait for shards on their way back, for the last cut; not for ever."""
        ends_s = time.monotonic() + LAST_RETURN_TIMEOUT_S
        while not self._shards.are_all_there and time.monotonic() < ends_s:
            ask_checks(time.monotonic())
            self._shards.go_on(session, self._shard_reports, time.monotonic())
            time.sleep(TICK_S)

    def _drain(self, session: AsyncSession, learner: PolledCall) -> None:
        """Stop the loops, take the last counters; what does not answer in time stays uncounted."""
        ray, roles, ends_s = import_ray(), self.roles, time.monotonic() + DRAIN_TIMEOUT_S
        try:
            placed = self._actors.placed
            stops = [roles.learner.request_stop]
            stops += [roles.actors[slot].request_stop for slot in placed.values()]
            stops += [roles.shards[index].open_gate for index in self._shards.polls]
            insist([stop.remote for stop in stops], time.monotonic() + TELL_TIMEOUT_S)
            insist([roles.learner.run.remote], ends_s, [self._learner_run.ref])
            self._take_last_of_actors(session, placed, ends_s - LAST_ANSWERS_S)
            self._evaluations.take_last_due(ends_s)
            self._learner_status = learner.last_answer(ends_s)
            for poll in self._shards.polls.values():
                self._take_report(poll.last_answer(ends_s))
            session.observe(self._newest_report())
        except (ray.exceptions.RayError, RoleLostError, WaitTimeoutError) as error:
            session.incident(f"the last counters are missing: {first_line(error)}")

    def _take_last_of_actors(
        self, session: AsyncSession, placed: Mapping[Any, int], ends_s: float
    ) -> None:
        """Counters after the last step of every actor; the newest it told of where none come."""
        roles = self.roles
        runs = [partial(roles.actors[s].run.remote, roles.shard_of(s)) for s in placed.values()]
        ended = insist(runs, ends_s, list(placed))
        for slot, ref in zip(placed.values(), ended, strict=True):
            if ref is not None:
                self._actors.take_final(slot, ref, session.incident)
