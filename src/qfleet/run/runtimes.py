"""Runs a session in one of the runtimes: build the roles, restore, loop, take the last cut.

Called by the composition root. On Ray, a learner or an only replay shard that dies is restarted
together with all other roles from the last cut, a bounded number of times.
"""

from __future__ import annotations

import signal
from dataclasses import asdict

from qfleet.cluster.background_imports import import_in_background
from qfleet.cluster.placing.surroundings import Surroundings
from qfleet.cluster.telling.ray_metrics import ray_metrics
from qfleet.cluster.waits import asked_in_every_wait
from qfleet.common.errors import NonFiniteError, QfleetError
from qfleet.fleets.fleet import Fleet
from qfleet.fleets.round_loop import run_rounds
from qfleet.replay_server.rate_limiter import LearningDebt
from qfleet.run.learner_path import local_device, remote_device
from qfleet.run.milestones import loop_ended, training_begins, training_ended
from qfleet.run.outcome import Outcome
from qfleet.run.phases import CHECKPOINT, EVALUATION, RAY, ROLES, SHUTDOWN, PhaseClock
from qfleet.run.restarts import with_restarts
from qfleet.run.stop_signals import HangBrokenError
from qfleet.session.session import Session
from qfleet.settings.plans import run_plans

INCARNATIONS_PER_PROCESS = 1 << 16
"""Each process of a run numbers its actors' incarnations from a multiple of this."""
INCARNATIONS_PER_RESTART = 1 << 10
_RAY_MODULES = (
    "qfleet.actors.remote",
    "qfleet.replay_server.remote",
    "qfleet.learner.remote",
    "qfleet.cluster.roles",
    "qfleet.fleets.async_loop",
    "tensorboard.summary.writer.record_writer",
)
"""What the driver needs once Ray is there."""


def run_session(session: Session, outcome: Outcome) -> None:
    """Train until the session says stop; fills `outcome`.

    Raises:
        QfleetError: when the run cannot go on.
    """
    if session.config.runtime == "local":
        _run_local(session, outcome)
    else:
        _run_ray(session, outcome)


def _run_local(session: Session, outcome: Outcome) -> None:
    outcome.phases.enter(ROLES)
    from qfleet.fleets.local_fleet import LocalFleet

    outcome.device = local_device(session.config)
    fleet = LocalFleet(
        run_plans(session.config),
        session.spec,
        run_id=session.run_id,
        incarnation=_incarnation(session, outcome),
        device=outcome.device,
    )

    def progress() -> object:
        is_saving = session.checkpoints.is_saving or outcome.phases.current == CHECKPOINT
        return object() if is_saving else fleet.progress()  # a disk may take its time

    try:
        with session.stop.breaking_hangs(progress):
            _run_lockstep(session, fleet, outcome)
    except HangBrokenError:
        outcome.reason = str(session.stop.name)
        session.incident(
            "something hung and was broken off after the signal, most likely an environment's step "
            "or reset: the last checkpoint is the one before it"
        )
        return  # its environments are not asked to close either
    except BaseException:
        fleet.close()
        raise
    fleet.close()


def _incarnation(session: Session, outcome: Outcome) -> int:
    """Above every incarnation that earlier processes and restarts of this run gave out.

    A lockstep run that begins at the beginning does so exactly: seeds follow from incarnations, and
    no shard is left that has seen one.
    """
    if outcome.point is None and session.config.effective_schedule == "lockstep":
        return 0
    process = session.process * INCARNATIONS_PER_PROCESS
    return process + outcome.role_restarts * INCARNATIONS_PER_RESTART


def _run_ray(session: Session, outcome: Outcome) -> None:
    try:
        _run_on_ray(session, outcome)
    except SystemExit as end:
        # A signal while something was being started: noted by us, or by ray.init's own handler.
        if session.stop.name is None:
            if end.code != signal.SIGTERM:
                raise
            session.stop.number = signal.SIGTERM
        outcome.reason = str(session.stop.name)
        if outcome.startup_s > 0.0:
            session.incident(
                "a role did not answer after the signal: the last checkpoint is the one before it"
            )


def _run_on_ray(session: Session, outcome: Outcome) -> None:
    outcome.phases.enter(RAY)
    from qfleet.cluster.cluster_pulse import ClusterPulse, services_of
    from qfleet.cluster.exposure import unsafe_settings
    from qfleet.cluster.ray_cluster import connect, disconnect, import_ray

    import_ray()
    import_in_background(*_RAY_MODULES)  # while `ray.init` waits for its processes
    with session.stop.interrupting():
        cluster = connect(run_plans(session.config).cluster, session.console.message)
    lockstep = session.config.effective_schedule == "lockstep"
    try:
        session.stop.listen()  # again, in the place of the SIGTERM handler that ray.init installs
        outcome.device = remote_device(session.config)
        outcome.is_own_ray = cluster.own is not None
        if not outcome.is_own_ray:
            session.progress.tell_row = ray_metrics(_run_name(session)).tell
        for text in unsafe_settings():
            session.incident(text)
        with (
            ClusterPulse(services_of(import_ray())) as pulse,
            asked_in_every_wait(pulse.end_wait),
            asked_in_every_wait(session.stop.end_wait),
        ):
            run_once = _run_ray_lockstep if lockstep else _run_ray_async
            with_restarts(session, outcome, run_once, pulse.settle)
    finally:
        outcome.phases.enter(SHUTDOWN)
        disconnect(cluster)


def _run_name(session: Session) -> str:
    """By which a person recognises the run among others in a cluster."""
    return f"{session.directory.path.absolute().name or 'run'}-{session.run_id[:4]}"


def _surroundings(session: Session, outcome: Outcome) -> Surroundings:
    return Surroundings(
        name=_run_name(session),
        is_own_ray=outcome.is_own_ray,
        logs=session.directory.logs_path,
        waiting=session.stop.interrupting,
        tell=session.console.message,
    )


def _run_ray_lockstep(session: Session, outcome: Outcome) -> None:
    outcome.phases.enter(ROLES)
    from qfleet.fleets.ray_fleet import RayFleet

    fleet = RayFleet(
        run_plans(session.config),
        session.spec,
        run_id=session.run_id,
        incarnation=_incarnation(session, outcome),
        device=outcome.device,
        surroundings=_surroundings(session, outcome),
    )
    try:
        _run_lockstep(session, fleet, outcome)
    finally:
        fleet.close()


def _run_lockstep(session: Session, fleet: Fleet, outcome: Outcome) -> None:
    debt = LearningDebt()
    session.round_state = lambda: asdict(debt)
    if outcome.point is not None:
        _restore_session(session, outcome)
        session.counters.totals.dropped += fleet.restore(outcome.point.role_files)
        debt = LearningDebt(**outcome.point.session["round"])
        session.rolled_back(fleet.report())
    else:
        if outcome.role_restarts > 0:
            session.rolled_back(fleet.report())
        if outcome.init_params is not None:
            fleet.init_params(outcome.init_params)
    training_begins(session, outcome)
    observer = LockstepObserver(session, outcome.phases)
    if session.stop_reason() is None:
        _run_rounds(session, fleet, observer, debt)
    outcome.reason = session.stop_reason() or "stopped"
    outcome.phases.enter(CHECKPOINT)
    loop_ended(session, outcome)
    session.observe(fleet.report())
    session.counters.all_told()
    outcome.params_sha256 = fleet.fingerprint()
    outcome.target_syncs = fleet.target_sync_log()
    observer.save(fleet)
    training_ended(session)


def _run_rounds(
    session: Session, fleet: Fleet, observer: LockstepObserver, debt: LearningDebt
) -> None:
    try:
        run_rounds(run_plans(session.config).fleet.rounds, fleet, observer, debt)
    except NonFiniteError:
        session.observe(fleet.report())  # what was played and learned up to the end
        session.progress.write_last_blocks(session.learner_steps)
        try:
            observer.evaluate_last(fleet)
        except QfleetError as error:  # the divergence is how this run ends
            session.incident(f"the last finite parameters could not be evaluated: {error}")
        raise


def _restore_session(session: Session, outcome: Outcome) -> None:
    """The session of the cut; after a restart in this process its time goes on running."""
    assert outcome.point is not None
    wall_s = session.counters.totals.wall_s
    session.restore(outcome.point.session)
    if outcome.role_restarts > 0:
        session.counters.totals.wall_s = wall_s


class LockstepObserver:
    """`RoundObserver` of a session: evaluates and checkpoints at logical points between rounds."""

    def __init__(self, session: Session, phases: PhaseClock) -> None:
        self._session, self._phases = session, phases

    def after_round(self, fleet: Fleet) -> bool:
        """See `RoundObserver`."""
        session = self._session
        session.observe(fleet.report())
        if session.evaluation_due():
            self.evaluate(fleet)
        if session.stop_reason() is not None:
            return False
        if session.checkpoint_due():
            self.save(fleet)
        return True

    def evaluate(self, fleet: Fleet) -> None:
        """Have the parameters of now played, and keep them as `best/` when they are."""
        session = self._session
        with self._phases.within(EVALUATION):
            started_s = session.clock()
            report = fleet.evaluate(session.evaluation_request())
            session.counters.totals.eval_s += session.clock() - started_s
            session.record_evaluation(report, fleet.params_bytes)

    def evaluate_last(self, fleet: Fleet) -> None:
        """Have what a refused block left played, finite as it is, unless it was already."""
        last = self._session.evaluations.tracker.last
        if last is None or last.learner_step < self._session.learner_steps:
            self.evaluate(fleet)

    def blocks_left(self, updates_per_block: int) -> int | None:
        """See `RoundObserver`."""
        return self._session.blocks_left(updates_per_block)

    def save(self, fleet: Fleet) -> None:
        """One checkpoint of the fleet as it is between two rounds."""
        contents = self._session.config.run.checkpoint_replay == "full"
        session = self._session
        session.save_checkpoint(
            fleet.capture(contents), fleet.params_bytes(), session.learner_steps
        )


def _run_ray_async(session: Session, outcome: Outcome) -> None:
    outcome.phases.enter(ROLES)
    from qfleet.fleets.async_loop import AsyncLoop

    loop = AsyncLoop(
        run_plans(session.config),
        session.spec,
        run_id=session.run_id,
        incarnation=_incarnation(session, outcome),
        device=outcome.device,
        surroundings=_surroundings(session, outcome),
    )
    try:
        if outcome.point is not None:
            if outcome.role_restarts == 0:
                session.restore(outcome.point.session)
            session.rolled_back(loop.restore(outcome.point.role_files))
        else:
            if outcome.role_restarts > 0:
                session.rolled_back(loop.report(with_actors=False))
            if outcome.init_params is not None:
                loop.init_params(outcome.init_params)
        loop.keep_versions_above(session.counters.highest_params_version)
        training_begins(session, outcome)
        outcome.reason = session.stop_reason() or loop.run(session)
        outcome.phases.enter(CHECKPOINT)
        loop_ended(session, outcome)
        loop.checkpoint(session)
        outcome.params_sha256 = loop.fingerprint()
        outcome.target_syncs = loop.target_sync_log()
        session.counters.totals.eval_s += loop.eval_s
        training_ended(session)
    finally:
        loop.close()
