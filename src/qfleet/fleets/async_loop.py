"""The driver's part of an asynchronous run: start the roles' loops, watch, evaluate, checkpoint.

Called by the composition root. The data never passes here: actors push to the replay shards and
the learner pulls from them. Every question to a role has a timeout; a role that stops answering is
dead. The driver is the only owner of Ray actors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import START_TIMEOUT_S, Roles, Waiting, answer, first_line
from qfleet.common.config import Config
from qfleet.common.errors import RoleLostError, WaitTimeoutError
from qfleet.common.messages import decode_snapshot
from qfleet.common.params import encode_safetensors
from qfleet.common.threads import with_lowered_priority
from qfleet.common.types import Array, EnvironmentSpec, EvaluationReport, EvaluationRequest
from qfleet.common.wire import decode_capture
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.fleets.ray_fleet import (
    capture_learner_and_replay,
    init_learner_params,
    make_actor_report,
    make_report,
    restore_learner_and_replay,
)
from qfleet.fleets.supervisor import ActorSupervisor, StallWatch

TICK_S = 0.05
EVALUATE_TIMEOUT_S = 1800.0
EVALUATION_WAIT_S = 1.0
"""How long one question for a snapshot to evaluate stays open at the learner."""
DRAIN_TIMEOUT_S = 5.0


class AsyncSession(Protocol):
    """What the loop asks of the run's bookkeeping."""

    def stop_reason(self) -> str | None:
        """Why to stop now, or None."""
        ...

    def observe(self, report: FleetReport) -> None:
        """Take in the roles' counters."""
        ...

    def evaluation_request(self) -> EvaluationRequest:
        """The next evaluation, on seeds of its own."""
        ...

    def record_evaluation(self, report: EvaluationReport, params: Callable[[], bytes]) -> None:
        """Take in an evaluation of parameters that `params` can give."""
        ...

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written now."""
        ...

    def save_checkpoint(self, files: dict[str, bytes], params: bytes, learner_step: int) -> None:
        """Commit a checkpoint of that learner step."""
        ...

    def incident(self, text: str) -> None:
        """Something that a user should see."""
        ...


class AsyncLoop:
    """One asynchronous run over Ray; owned by the driver's main thread."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        *,
        run_id: str,
        incarnation: int,
        device: str,
        waiting: Waiting = nullcontext,
    ) -> None:
        self._config, self._spec = config, spec
        self.roles = Roles(config, spec, run_id=run_id, device=device)
        self._supervisor = ActorSupervisor(config.actors.min_count)
        self._stall_watch = StallWatch()
        self._runs: dict[Any, int] = {}
        self._pings: dict[int, PolledCall] = {}
        self._actor_reports: dict[int, ActorReport] = {}
        self._gone_produced = 0
        with self.roles.ended_on_error():
            self._begin(incarnation, waiting)
        self.eval_s = 0.0
        """Seconds during which an evaluation was under way."""
        self._evaluating: Any = None
        self._evaluating_since_s = 0.0
        self._evaluated_snapshot = b""
        self._waiting_snapshot: bytes | None = None
        self._due: Any = None
        self._learner_status: dict[str, Any] | None = None
        self._shard_reports: dict[int, dict[str, Any]] = {}

    def _begin(self, incarnation: int, waiting: Waiting) -> None:
        assert isinstance(self._config.actors.count, int)
        for slot in range(self._config.actors.count):
            self.roles.create_actor(slot, incarnation)
            self._supervisor.add(slot, incarnation)
        with waiting():
            self.roles.wait_until_ready()
        shards = self.roles.learner.set_shards.remote(self.roles.shards)
        answer(shards, "driver", "the learner")

    def restore(self, files: dict[str, bytes]) -> FleetReport:
        """Continue from a cut; actors start new episodes, so no open window is ever resumed."""
        restore_learner_and_replay(self.roles, files)
        return self.first_report()

    def init_params(self, arrays: dict[str, Array]) -> None:
        """Begin with another run's parameters; before `run`."""
        init_learner_params(self.roles, arrays)

    def keep_versions_above(self, version: int) -> None:
        """Versions never go backwards, also when the learner was rolled back."""
        ref = self.roles.learner.keep_versions_above.remote(version)
        answer(ref, "driver", "the learner")

    def first_report(self) -> FleetReport:
        """The roles' counters before anybody plays."""
        status = answer(self.roles.learner.status.remote(), "driver", "the learner's status")
        refs = [shard.report.remote() for shard in self.roles.shards]
        return make_report(status, [answer(r, "driver", "replay counters") for r in refs], [])

    def fingerprint(self) -> str:
        """`params_sha256` of the online network."""
        ref = self.roles.learner.fingerprint.remote()
        return str(answer(ref, "driver", "the parameters' fingerprint"))

    def target_sync_log(self) -> dict[str, Any]:
        """Hard syncs as done by the learner, and as acknowledged per actor slot."""
        ref = self.roles.learner.target_sync_log.remote()
        return dict(answer(ref, "driver", "the log of target syncs"))

    def run(self, session: AsyncSession) -> str:
        """Train until the session or the budget says stop; returns the reason.

        Raises:
            RoleLostError: when the learner or a shard died, or too few actors are left.
            QfleetError: what a role itself raised.
        """
        learner = self.roles.learner
        answer(
            learner.set_actors.remote(self.roles.actors), "driver", "the learner", START_TIMEOUT_S
        )
        learner_run = learner.run.remote()
        self._due = learner.await_evaluation.remote(EVALUATION_WAIT_S)
        for slot in self.roles.actors:
            self._start_actor(slot)
        polls = {
            "learner": PolledCall(learner.status.remote, "the learner"),
            **{
                f"replay-{i}": PolledCall(shard.report.remote, f"replay shard {i}")
                for i, shard in enumerate(self.roles.shards)
            },
        }
        try:
            while True:
                reason = self._tick(session, polls, learner_run)
                if reason is not None:
                    break
        except (RoleLostError, WaitTimeoutError):
            raise  # the roles are to be ended anyway: nobody waits for their last words
        except BaseException:
            self._drain(session, polls, learner_run)
            raise
        self._drain(session, polls, learner_run)
        if reason.startswith("max_"):
            self._end_evaluations(session)
        return reason

    def _tick(
        self, session: AsyncSession, polls: dict[str, PolledCall], learner_run: Any
    ) -> str | None:
        refs = [learner_run, self._due, *self._runs]
        if self._evaluating is not None:
            refs.append(self._evaluating)
        ready, _ = import_ray().wait(refs, timeout=TICK_S, fetch_local=False)
        now_s = time.monotonic()
        for ref in ready:
            if ref is self._due:
                self._take_due(answer(ref, "driver", "the learner"))
                self._due = self.roles.learner.await_evaluation.remote(EVALUATION_WAIT_S)
                continue
            if ref is self._evaluating:
                continue  # `_evaluate` takes it
            if ref is learner_run:
                answer(ref, "driver", "the learner")
                self._poll_all(session, polls, now_s)
                return session.stop_reason() or "max_learner_steps"
            self._bury(session, ref, now_s)
        self._poll_all(session, polls, now_s)
        self._fill_slots(session, now_s)
        self._evaluate(session)
        if session.checkpoint_due():
            # On a full machine the roles' work comes first: a cut must not hold up inserts.
            with_lowered_priority(lambda: self.checkpoint(session))
        return session.stop_reason()

    def _poll_all(self, session: AsyncSession, polls: dict[str, PolledCall], now_s: float) -> None:
        for name, poll in polls.items():
            result = poll.poll(now_s)
            if result is not None:
                self._take_answer(name, result)
        self._poll_actors(now_s)
        if self._learner_status and len(self._shard_reports) == len(self.roles.shards):
            report = self._report()
            session.observe(report)
            played = sum(actor.env_steps for actor in report.actors)
            self._stall_watch.observe(played, report.learner.learner_steps, now_s)

    def _take_answer(self, name: str, result: dict[str, Any]) -> None:
        """Keep the newest counters; snapshots and episodes are told once and must not be lost."""
        if name == "learner":
            self._learner_status = result
            return
        earlier = self._shard_reports.get(result["shard"])
        if earlier is not None:
            result["episodes"] = [*earlier["episodes"], *result["episodes"]]
        self._shard_reports[result["shard"]] = result

    def _take_due(self, snapshot: bytes | None) -> None:
        """Keep the newest snapshot to evaluate; one that waited behind an evaluation is dropped."""
        if snapshot is not None:
            self._waiting_snapshot = snapshot

    def _poll_actors(self, now_s: float) -> None:
        for slot, ping in list(self._pings.items()):
            try:
                result = ping.poll(now_s)
            except RoleLostError:
                continue  # its `run` ends with the same news, and that is where it is buried
            except WaitTimeoutError:
                import_ray().kill(self.roles.actors[slot], no_restart=True)
                del self._pings[slot]
                continue
            if result is not None:
                self._actor_reports[slot] = make_actor_report(result)

    def _report(self) -> FleetReport:
        assert self._learner_status is not None
        shards = [self._shard_reports[i] for i in sorted(self._shard_reports)]
        report = make_report(self._learner_status, shards, [])
        for shard in shards:
            shard["episodes"] = []
        report.actors.extend(self._actor_reports[s] for s in sorted(self._actor_reports))
        return report

    @property
    def gone_produced(self) -> int:
        """Transitions numbered by actors that died, as far as they told before."""
        return self._gone_produced

    def _start_actor(self, slot: int) -> None:
        actor = self.roles.actors[slot]
        self._runs[actor.run.remote(self.roles.shard_of(slot))] = slot
        self._pings[slot] = PolledCall(actor.ping.remote, f"actor {slot}")

    def _bury(self, session: AsyncSession, ref: Any, now_s: float) -> None:
        """An actor's loop ended by itself: note why, fence the slot and plan its replacement."""
        slot = self._runs.pop(ref)
        ray = import_ray()
        try:
            ray.get(ref, timeout=1.0)
            reason = "it was refused by the replay server"
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            reason = first_line(error)
        self._pings.pop(slot, None)
        last = self._actor_reports.pop(slot, None)
        if last is not None:
            self._gone_produced += last.produced
        ray.kill(self.roles.actors[slot], no_restart=True)
        session.incident(self._supervisor.died(slot, reason, last.env_steps if last else 0, now_s))

    def _fill_slots(self, session: AsyncSession, now_s: float) -> None:
        due = self._supervisor.due(now_s)
        if not due:
            return
        for slot, incarnation in due.items():
            fence = self.roles.shard_of(slot).fence.remote(slot, incarnation)
            answer(fence, "driver", f"the replay shard to fence actor {slot}")
            self.roles.create_actor(slot, incarnation)
        living = {
            slot: actor
            for slot, actor in self.roles.actors.items()
            if slot in due or slot in self._runs.values()
        }
        answer(
            self.roles.learner.set_actors.remote(living), "driver", "the learner", START_TIMEOUT_S
        )
        for slot, incarnation in due.items():
            self._start_actor(slot)
            session.incident(f"actor {slot} plays again (incarnation {incarnation})")

    def _evaluate(self, session: AsyncSession) -> None:
        if self._evaluating is not None:
            ready, _ = import_ray().wait([self._evaluating], timeout=0)
            if not ready:
                return
            self._take_evaluation(session)
        if self._waiting_snapshot is not None:
            snapshot, self._waiting_snapshot = self._waiting_snapshot, None
            self._evaluated_snapshot = snapshot
            request = list(session.evaluation_request())
            self._evaluating = self.roles.evaluator.evaluate.remote(snapshot, request)
            self._evaluating_since_s = time.monotonic()

    def _end_evaluations(self, session: AsyncSession) -> None:
        """A run that spent its budget is still scored on what it had to evaluate."""
        while self._evaluating is not None or self._waiting_snapshot is not None:
            if self._evaluating is not None:
                self._take_evaluation(session, EVALUATE_TIMEOUT_S)
            self._evaluate(session)

    def _take_evaluation(self, session: AsyncSession, timeout_s: float = 60.0) -> None:
        """The evaluation under way, waited for if need be."""
        ref, self._evaluating = self._evaluating, None
        try:
            report = EvaluationReport(*answer(ref, "driver", "the evaluator", timeout_s))
        except RoleLostError as error:
            session.incident(f"{error}; a new one takes its place")
            self.roles.create_evaluator()
            return
        self.eval_s += time.monotonic() - self._evaluating_since_s
        session.record_evaluation(report, self._evaluated_params)

    def _evaluated_params(self) -> bytes:
        arrays = decode_snapshot(self._evaluated_snapshot).arrays
        return encode_safetensors(arrays, self._config.network, self._spec)

    def checkpoint(self, session: AsyncSession) -> None:
        """One cut: the learner between two blocks, then every shard."""
        contents = self._config.run.checkpoint_replay == "full"
        files = capture_learner_and_replay(self.roles, contents)
        learner = decode_capture(files["learner.qflt"])
        arrays = {
            name.removeprefix("online/"): array
            for name, array in learner.arrays.items()
            if name.startswith("online/")
        }
        params = encode_safetensors(arrays, self._config.network, self._spec)
        # The step of the cut itself: the learner has gone on since the last report.
        session.save_checkpoint(files, params, int(learner.meta["learner_steps"]))

    def _drain(self, session: AsyncSession, polls: dict[str, PolledCall], learner_run: Any) -> None:
        """Stop the loops, take the last counters; what does not answer in time stays uncounted."""
        ray = import_ray()
        try:
            self.roles.learner.request_stop.remote()
            for slot in self._runs.values():
                self.roles.actors[slot].request_stop.remote()
            for shard in self.roles.shards:
                shard.open_gate.remote()
            ray.wait([learner_run], timeout=DRAIN_TIMEOUT_S)
            runs = list(self._runs)
            ended, _ = ray.wait(runs, num_returns=len(runs), timeout=DRAIN_TIMEOUT_S)
            for ref in ended:
                counters = ray.get(ref, timeout=1.0)
                self._actor_reports[counters["slot"]] = make_actor_report(counters)
            # The question still open, and a last one: what fell due is told once.
            for ref in (self._due, self.roles.learner.await_evaluation.remote(0.0)):
                self._take_due(ray.get(ref, timeout=DRAIN_TIMEOUT_S))
            for name, poll in polls.items():
                for result in poll.last_answers(DRAIN_TIMEOUT_S):
                    self._take_answer(name, result)
            session.observe(self._report())
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            session.incident(f"the last counters are missing: {first_line(error)}")

    def close(self) -> None:
        """End every role."""
        self.roles.kill_all()
