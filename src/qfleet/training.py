"""The composition root: from a configuration to a finished run, in either runtime.

Called by `qfleet train` and by `qfleet.train`. Everything that can be refused is refused before
anything is started; after that every exit leaves a summary and, where there is something to keep,
a checkpoint.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from qfleet.common.config import Config
from qfleet.common.config_auto import resolve_config
from qfleet.common.config_checks import check_config, nvidia_gpus
from qfleet.common.envs import describe_environment
from qfleet.common.errors import ConfigError, QfleetError
from qfleet.common.metrics import MetricsWriter
from qfleet.common.types import EnvironmentSpec, EvaluationReport
from qfleet.config_loading import choice_note, dump_yaml, error_message
from qfleet.console import make_console
from qfleet.finish import finish
from qfleet.fleet import Fleet
from qfleet.resume import (
    ResumePoint,
    check_compatible,
    find_point,
    is_complete,
    load_saved_config,
    target_of,
)
from qfleet.round_loop import LearningDebt, run_rounds
from qfleet.run_directory import RunDirectory
from qfleet.session import Session
from qfleet.stop_signals import StopSignal, noticed
from qfleet.summary import RunSummary, final_block, read_summary

INCARNATIONS_PER_RESUME = 1 << 16
"""Each process of a run numbers its actors' incarnations from a multiple of this."""

RunResult = RunSummary
"""What `train` returns: the fields of summary.json."""


@dataclass
class Outcome:
    """How the loop ended, and what the summary needs beside the session."""

    reason: str = ""
    error: QfleetError | None = None
    startup_s: float = 0.0
    train_s: float = 0.0
    params_sha256: str = ""
    device: str = "cpu"
    resume_kind: str | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    target_syncs: dict[str, Any] = field(default_factory=dict)
    crash: Exception | None = None


def run_train(config: Config, *, resume: str | None = None, run_dir: str | None = None) -> int:
    """`train` for the command line: prints the last block and returns the exit code."""
    summary = train(config, resume=resume, run_dir=run_dir)
    return summary.exit_code


def train(
    config: Config,
    on_evaluation: Callable[[EvaluationReport], None] | None = None,
    *,
    resume: str | None = None,
    run_dir: str | Path | None = None,
) -> RunResult:
    """Train until solved, a budget is spent or a signal comes.

    Joins a Ray that this program has initialized and leaves it running.

    Raises:
        ConfigError, ResourcesError, CheckpointError: before anything was started.
        Exception: a bug, after the summary was written.
    """
    process_started_s = time.monotonic() - _process_age_s()
    directory_argument = str(run_dir) if run_dir is not None else config.run.dir
    target = target_of(resume, directory_argument)
    if target is not None and resume == "auto" and is_complete(target, config):
        summary = read_summary(target)
        assert summary is not None, "is_complete has read it"
        make_console(config.metrics.console).finish(
            f"{target} is {summary.status} already and no budget was raised: nothing to do"
        )
        return summary.model_copy(update={"exit_code": 0})
    spec, resolved = check_and_resolve(config)
    if target is not None:
        check_compatible(load_saved_config(target), resolved)
        directory = RunDirectory.open_for_resume(target)
    else:
        directory = RunDirectory.create(resolved, directory_argument)
    with directory:
        point = find_point(directory) if target is not None else None
        return _train_in(
            directory, resolved, spec, point, on_evaluation, process_started_s, target is not None
        )


def check_and_resolve(config: Config) -> tuple[EnvironmentSpec, Config]:
    """The environment's spec and the configuration with every `auto` as a number.

    Raises:
        ConfigError: every problem at once, each with key, value and remedy.
    """
    spec = describe_environment(config.env)
    gpus = nvidia_gpus()
    problems = check_config(
        config,
        spec,
        cpus=os.cpu_count() or 1,
        gpus=gpus,
        memory_bytes=psutil.virtual_memory().total,
        cuda_available=gpus > 0 if config.ray.address is None else None,
    )
    if problems:
        raise ConfigError(error_message(problems))
    return spec, resolve_config(config, spec, cpus=os.cpu_count() or 1, gpus=gpus)


def _process_age_s() -> float:
    return max(0.0, time.time() - psutil.Process().create_time())


def _train_in(
    directory: RunDirectory,
    config: Config,
    spec: EnvironmentSpec,
    point: ResumePoint | None,
    on_evaluation: Callable[[EvaluationReport], None] | None,
    process_started_s: float,
    is_resume: bool,
) -> RunSummary:
    if not is_resume:
        directory.write_config(dump_yaml(config))
    directory.write_command(sys.argv)
    console = make_console(config.metrics.console)
    resume_kind = _resume_kind(config, point) if is_resume else None
    console.start(header_lines(config, directory, point, resume_kind))
    writer = MetricsWriter(
        directory.path,
        env_id=spec.env_id,
        t_start_s=time.time(),
        resumed_at_env_steps=point.checkpoint.manifest["env_steps"] if point else None,
    )
    session = Session(
        config,
        spec,
        directory,
        writer,
        console,
        run_id=point.session["run_id"] if point else uuid.uuid4().hex[:16],
        stop=StopSignal(),
        on_evaluation=on_evaluation,
    )
    if point is not None:
        session.restore(point.session)
        for reason in point.skipped:
            session.incident(f"a damaged checkpoint was passed over: {reason}")
    outcome = Outcome(resume_kind=resume_kind, device=config.learner.device)
    try:
        _run(session, point, outcome, process_started_s)
    finally:
        writer.close()
    summary = finish(session, outcome, process_started_s)
    console.finish(final_block(summary, directory.path))
    if outcome.crash is not None:
        raise outcome.crash
    if outcome.error is not None:
        print(f"qfleet: {outcome.error}", file=sys.stderr)
    return summary


def _run(
    session: Session, point: ResumePoint | None, outcome: Outcome, process_started_s: float
) -> None:
    """The loop, with every way it can end turned into an outcome."""
    run = _run_local if session.config.runtime == "local" else _run_ray
    try:
        run(session, point, outcome, process_started_s)
    except QfleetError as error:
        outcome.error, outcome.reason = error, str(error)
    except Exception as error:
        outcome.crash, outcome.reason = error, f"{type(error).__name__}: {error}"
    outcome.train_s = session.totals.wall_s + session.elapsed_s


def header_lines(
    config: Config, directory: RunDirectory, point: ResumePoint | None, resume_kind: str | None
) -> list[str]:
    """What was started: runtime, device, learner's path, reproducibility, resume, directory."""
    schedule = config.effective_schedule
    ray = "no Ray (local runtime)" if config.runtime == "local" else _ray_intention(config)
    reproducible = (
        "yes (lockstep)"
        if schedule == "lockstep"
        else "no (async); yes with --runtime local or --run.schedule lockstep"
    )
    lines = [
        f"qfleet: {ray} · device {config.learner.device} · learner eager PyTorch · "
        f"reproducible: {reproducible}",
        f"{choice_note(config)} · {config.actors.count} actors × {config.actors.envs_per_actor} "
        f"environments · {config.replay.shards} replay shards · seed {config.seed}",
    ]
    if resume_kind is not None:
        at = f"learner step {point.checkpoint.learner_step:,}" if point else "the beginning"
        lines.append(f"resumed at {at}: {resume_kind}")
    lines.append(f"run directory {directory.path}")
    return lines


def _ray_intention(config: Config) -> str:
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return "joins the Ray of this program"
    if address in (None, "local"):
        return "starts a Ray of its own"
    return f"joins Ray at {address}"


def _resume_kind(config: Config, point: ResumePoint | None) -> str:
    if point is None:
        return "from the start: no checkpoint had been written"
    if config.effective_schedule != "lockstep":
        return "new episodes (async)"
    if point.checkpoint.manifest.get("replay") != "full":
        return "new episodes (the checkpoint has no replay contents)"
    if any(name.startswith("actor-") for name in point.checkpoint.files):
        return "exact where the environment can be captured, else new episodes"
    return "new episodes (the checkpoint is of an async run)"


def _device(config: Config) -> str:
    """`auto` as torch sees it; a GPU that torch cannot use is an error, not a surprise."""
    wanted = config.learner.device
    if wanted == "cpu":
        return wanted
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"learner.device = {wanted}: torch {torch.__version__} sees no usable GPU; install a "
            "CUDA build of torch, or use --device cpu"
        )
    return wanted


def _run_local(
    session: Session, point: ResumePoint | None, outcome: Outcome, process_started_s: float
) -> None:
    from qfleet.local_fleet import LocalFleet

    with noticed() as stop:
        session.stop = stop
        device = _device(session.config)
        outcome.device = device
        fleet = LocalFleet(
            session.config,
            session.spec,
            run_id=session.run_id,
            incarnation=_first_incarnation(session),
            device=device,
        )
        try:
            _run_lockstep(session, fleet, point, outcome, process_started_s)
        finally:
            fleet.close()


def _first_incarnation(session: Session) -> int:
    """Above every incarnation that an earlier process of this run gave out."""
    commands = session.directory.command_path.read_text().count("\n")
    return (commands - 1) * INCARNATIONS_PER_RESUME


def _run_ray(
    session: Session, point: ResumePoint | None, outcome: Outcome, process_started_s: float
) -> None:
    from qfleet.ray_cluster import connect, disconnect

    started_s = time.monotonic()
    cluster = connect(session.config)
    outcome.phases_s["ray"] = time.monotonic() - started_s
    try:
        with noticed() as stop:  # after ray.init, which installs a SIGTERM handler of its own
            session.stop = stop
            if session.config.effective_schedule == "lockstep":
                _run_ray_lockstep(session, point, outcome, process_started_s)
            else:
                _run_ray_async(session, point, outcome, process_started_s)
    finally:
        with _timed(outcome, "shutdown"):
            disconnect(cluster)


@contextmanager
def _timed(outcome: Outcome, phase: str) -> Iterator[None]:
    started_s = time.monotonic()
    try:
        yield
    finally:
        outcome.phases_s[phase] = time.monotonic() - started_s


def _remote_device(config: Config) -> str:
    """The learner's device when another process owns it: Ray has placed it on a GPU, or not."""
    if config.learner.num_gpus == 0:
        return "cpu"
    return "cuda" if config.learner.device == "auto" else config.learner.device


def _run_ray_lockstep(
    session: Session, point: ResumePoint | None, outcome: Outcome, process_started_s: float
) -> None:
    from qfleet.ray_fleet import RayFleet

    outcome.device = _remote_device(session.config)
    fleet = RayFleet(
        session.config,
        session.spec,
        run_id=session.run_id,
        incarnation=_first_incarnation(session),
        device=outcome.device,
    )
    try:
        _run_lockstep(session, fleet, point, outcome, process_started_s)
    finally:
        fleet.close()


def _run_lockstep(
    session: Session,
    fleet: Fleet,
    point: ResumePoint | None,
    outcome: Outcome,
    process_started_s: float,
) -> None:
    debt = LearningDebt()
    session.round_state = lambda: asdict(debt)
    if point is not None:
        session.totals.dropped += fleet.restore(point.role_files)
        debt = LearningDebt(**point.session["round"])
        session.report = fleet.report()
        session.count_earlier_parts()
    outcome.startup_s = time.monotonic() - process_started_s
    session.begin()
    observer = LockstepObserver(session)
    if session.stop_reason() is None:
        run_rounds(session.config, fleet, observer, debt)
    outcome.reason = session.stop_reason() or "stopped"
    session.observe(fleet.report())
    outcome.params_sha256 = fleet.fingerprint()
    outcome.target_syncs = fleet.target_sync_log()
    observer.save(fleet)


class LockstepObserver:
    """`RoundObserver` of a session: evaluates and checkpoints at logical points between rounds."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def after_round(self, fleet: Fleet) -> bool:
        """See `RoundObserver`."""
        session = self._session
        session.observe(fleet.report())
        if session.evaluation_due():
            started_s = session.clock()
            report = fleet.evaluate(session.evaluation_request())
            session.totals.eval_s += session.clock() - started_s
            session.record_evaluation(report, fleet.params_bytes)
        if session.stop_reason() is not None:
            return False
        if session.checkpoint_due():
            self.save(fleet)
        return True

    def blocks_left(self, updates_per_block: int) -> int | None:
        """See `RoundObserver`."""
        return self._session.blocks_left(updates_per_block)

    def save(self, fleet: Fleet) -> None:
        """One checkpoint of the fleet as it is between two rounds."""
        contents = self._session.config.run.checkpoint_replay == "full"
        self._session.save_checkpoint(fleet.capture(contents), fleet.params_bytes())


def _run_ray_async(
    session: Session, point: ResumePoint | None, outcome: Outcome, process_started_s: float
) -> None:
    from qfleet.async_loop import AsyncLoop

    outcome.device = _remote_device(session.config)
    loop = AsyncLoop(
        session.config,
        session.spec,
        run_id=session.run_id,
        incarnation=_first_incarnation(session),
        device=outcome.device,
    )
    session.gone_produced = lambda: loop.gone_produced
    try:
        if point is not None:
            session.report = loop.restore(point.role_files)
            session.count_earlier_parts()
        outcome.startup_s = time.monotonic() - process_started_s
        session.begin()
        outcome.reason = session.stop_reason() or loop.run(session)
        loop.checkpoint(session)
        outcome.params_sha256 = loop.fingerprint()
        outcome.target_syncs = loop.target_sync_log()
        session.totals.eval_s += loop.eval_s
    finally:
        loop.close()
