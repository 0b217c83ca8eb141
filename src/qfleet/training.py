"""The composition root: from a configuration to a finished run, in either runtime.

Called by `qfleet train` and by `qfleet.train`. Everything that can be refused is refused before
anything is started; after that every exit leaves a summary and, where there is something to keep,
a checkpoint.
"""

from __future__ import annotations

import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from qfleet.api import load_params
from qfleet.common.errors import ConfigError, EnvironmentFailedError, QfleetError
from qfleet.common.reports import EvaluationReport
from qfleet.common.types import EnvironmentSpec
from qfleet.common.vector_envs import make_vector_env
from qfleet.pictures.artifacts import Artifacts
from qfleet.run.finish import finish
from qfleet.run.learner_path import intended_path
from qfleet.run.outcome import Outcome
from qfleet.run.phases import process_started_s
from qfleet.run.resolution import check_and_resolve
from qfleet.run.runtimes import run_session
from qfleet.run.stop_signals import noticed
from qfleet.run_files.durable import DiskWatch
from qfleet.run_files.metrics import MetricsWriter
from qfleet.run_files.resume import (
    ResumePoint,
    check_compatible,
    find_point,
    is_complete,
    load_saved_config,
    target_of,
    with_saved_numbers,
)
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import RunSummary, read_summary
from qfleet.session.session import Session
from qfleet.settings.config import Config
from qfleet.settings.config_loading import dump_yaml
from qfleet.terminal.console import make_console
from qfleet.terminal.final_block import final_block
from qfleet.terminal.frame_notices import frame_notices
from qfleet.terminal.guarded_console import GuardedConsole
from qfleet.terminal.header import header_lines

RunResult = RunSummary
"""What `train` returns: the fields of summary.json."""


def run_train(
    config: Config,
    *,
    resume: str | None = None,
    run_dir: str | None = None,
    init_from: str | None = None,
) -> int:
    """`train` for the command line: prints the last block and returns the exit code."""
    config = _with_lean(config, True)
    return _train(config, None, resume, run_dir, init_from, process_started_s()).exit_code


def train(
    config: Config,
    on_evaluation: Callable[[EvaluationReport], object] | None = None,
    *,
    resume: str | None = None,
    run_dir: str | Path | None = None,
    init_from: str | Path | None = None,
) -> RunResult:
    """Train until solved, a budget is spent or a signal comes.

    Joins a Ray that this program has initialized and leaves it running.

    Args:
        config: With or without its `auto` values resolved.
        on_evaluation: Called with every periodic evaluation; False stops the run.
        resume: A run to continue in place, or `auto` (start or continue `run_dir`).
        run_dir: Where everything is written; None: `run.dir`, else a new one under `runs/`.
        init_from: A run whose parameters a new run begins with.

    Raises:
        ConfigError, ResourcesError, CheckpointError: before anything was started.
        Exception: a bug, after the summary was written.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"train takes a qfleet.Config, got {type(config).__name__}; write "
            "qfleet.Config.preset(NAME, {KEY: VALUE})"
        )
    config = _with_lean(config, False)
    return _train(config, on_evaluation, resume, run_dir, init_from, time.monotonic())


def _with_lean(config: Config, default: bool) -> Config:
    """`ray.lean` as asked for, else what suits the caller.

    A program may use Ray's own tools beside the run; who types a command waits for its start.
    """
    if config.ray.lean is not None:
        return config
    return config.model_copy(update={"ray": config.ray.model_copy(update={"lean": default})})


def _train(
    config: Config,
    on_evaluation: Callable[[EvaluationReport], object] | None,
    resume: str | None,
    run_dir: str | Path | None,
    init_from: str | Path | None,
    started_s: float,
) -> RunSummary:
    """`train`, with times counted from `started_s`: the process's start for the command line."""
    directory_argument = str(run_dir) if run_dir is not None else config.run.dir
    if resume is not None and init_from is not None:
        raise ConfigError("--init-from starts a new run and --resume continues one: give one")
    target = target_of(resume, directory_argument)
    init_params = None if init_from is None else load_params(init_from)
    if target is not None and resume == "auto" and is_complete(target, config):
        summary = read_summary(target)
        assert summary is not None, "is_complete has read it"
        make_console(config.metrics.console).finish(
            f"{target} is {summary.status} already and no budget was raised: nothing to do"
        )
        return summary.model_copy(update={"exit_code": 0})
    saved = None if target is None else load_saved_config(target)
    spec, resolved = check_and_resolve(
        config if saved is None else with_saved_numbers(config, saved)
    )
    if target is not None and saved is not None:
        check_compatible(saved, resolved)
        directory = RunDirectory.open_for_resume(target)
    else:
        directory = RunDirectory.create(resolved, directory_argument)
    with directory:
        point = find_point(directory) if target is not None else None
        outcome = Outcome(started_s, point, init_params)
        outcome.init_from = None if init_from is None else str(init_from)
        if saved is not None:
            outcome.resume_kind = _resume_kind(saved, resolved, point)
        return _train_in(directory, resolved, spec, outcome, on_evaluation)


def _train_in(
    directory: RunDirectory,
    config: Config,
    spec: EnvironmentSpec,
    outcome: Outcome,
    on_evaluation: Callable[[EvaluationReport], object] | None,
) -> RunSummary:
    point = outcome.point
    if outcome.resume_kind is None:
        directory.write_config(_saved_text(config))
    directory.write_command(sys.argv)
    directory.reserve_room()
    watch = DiskWatch()
    console = GuardedConsole(make_console(config.metrics.console), watch)
    outcome.learner_path = intended_path(config, spec)
    console.start(header_lines(config, directory, outcome, outcome.learner_path))
    for line in frame_notices(config, spec) if outcome.resume_kind is None else ():
        console.message(line)
    writer = MetricsWriter(directory.path, env_id=spec.env_id, t_start_s=time.time(), watch=watch)
    if outcome.resume_kind is not None:
        writer.forget_beyond(point.checkpoint.manifest["env_steps"] if point else 0)
    with noticed() as stop:
        session = Session(
            config,
            spec,
            directory,
            writer,
            console,
            run_id=point.session["run_id"] if point else uuid.uuid4().hex[:16],
            process=directory.identity.next_process(point.session["process"] + 1 if point else 0),
            stop=stop,
            on_evaluation=on_evaluation,
            artifacts=Artifacts(directory.path),
            watch=watch,
        )
        if config.runtime == "local" and session.artifacts is not None:
            # A local run leaves the second core idle; a Ray run starts its roles on it.
            session.artifacts.prepare()
        for reason in point.skipped if point else ():
            session.incident(f"a damaged checkpoint was passed over: {reason}")
        try:
            _run(session, outcome)
        finally:
            writer.close()
        summary = finish(session, outcome)
    console.finish(final_block(summary, directory.path))
    if outcome.crash is not None:
        raise outcome.crash
    if outcome.error is not None:
        print(f"qfleet: {outcome.error}", file=sys.stderr)
    return summary


def _saved_text(config: Config) -> str:
    """config.yaml; without `run.dir`, for as `--config` it begins a run somewhere else."""
    run = config.run.model_copy(update={"dir": None})
    return dump_yaml(config.model_copy(update={"run": run}))


def _run(session: Session, outcome: Outcome) -> None:
    """The loop, with every way it can end turned into an outcome."""
    try:
        run_session(session, outcome)
    except QfleetError as error:
        outcome.error, outcome.reason = error, str(error)
        session.progress.write_last_blocks()
        if isinstance(error, EnvironmentFailedError):
            whole_text = "".join(traceback.format_exception(error))
            session.incident("an environment failed", whole_text)
    except Exception as error:
        outcome.crash, outcome.reason = error, f"{type(error).__name__}: {error}"
    if outcome.startup_s > 0.0 and outcome.train_s == 0.0:  # an error ended the loop
        outcome.train_s = session.counters.wall_s


def _resume_kind(saved: Config, config: Config, point: ResumePoint | None) -> str:
    """What a resumed run promises; `saved` is what the run began with."""
    if point is None:
        return "from the start: no checkpoint had been written"
    if config.effective_schedule != "lockstep":
        return "new episodes (async)"
    if point.checkpoint.manifest.get("replay") != "full":
        return "new episodes (the checkpoint has no replay contents)"
    n_actors = sum(name.startswith("actor-") for name in point.checkpoint.names)
    if n_actors == 0:
        return "new episodes (the checkpoint is of an async run)"
    if n_actors != config.actors.count:
        return f"not exact ({config.actors.count} actors go on where {n_actors} played)"
    if saved.eval.max_episode_steps != config.eval.max_episode_steps:
        return "not exact (eval.max_episode_steps is another one)"
    return "exact" if _can_capture(config) else "new episodes (the environment has no capture())"


def _can_capture(config: Config) -> bool:
    """Whether a sub-environment's state can be saved and restored exactly."""
    env = make_vector_env(config.env, 1)
    try:
        return env.supports_capture
    finally:
        env.close()
