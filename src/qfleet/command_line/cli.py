"""The command `qfleet`: reads the words, calls the module of the command, returns the exit code.

Commands are imported when they are called: `--help` must answer within a second, and neither
torch nor Ray may be loaded for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from qfleet import __version__
from qfleet.command_line.command_flags import parser_of

_HELP = """\
qfleet: distributed deep Q-learning. One command on a laptop, the same on a Ray cluster.

  qfleet train [TARGET] [flags]   learn; TARGET is a preset or an environment id
  qfleet eval [RUN]               score a run over fresh greedy episodes
  qfleet play [RUN]               film a run, or show it in a window
  qfleet status [RUN]             where a run stands
  qfleet scale RUN --actors N     more or fewer actors in a run that goes on
  qfleet study NAME|FILE          compare arms over seeds, with a report (target-network)
  qfleet report RUN...            compare runs: a table, or -o FILE.html, .csv, .json
  qfleet bench NAME               time one part of the system
  qfleet doctor                   check this machine
  qfleet config show|schema|reference   the configuration: as resolved, as JSON schema, as a page

RUN is a run directory; left out, it is runs/latest. `qfleet COMMAND --help` says more.
"""

_TRAIN_HELP = """\
qfleet train [TARGET] [flags]

TARGET  a preset or an environment id (LunarLander-v3, my_module:MyEnv-v0); left out, it is
        cartpole. Presets: PRESETS

  --config FILE               YAML file, may be repeated; preset:NAME takes a preset's values
  --runtime ray|local         local: one process, reproducible, without Ray (default: ray)
  --run-dir DIR               where everything is written (default: runs/<env>__<preset>__...)
  --resume RUN|auto           continue a run; auto: the one in --run-dir, or start it
  --init-from RUN             a new run that begins with that run's parameters
  --allow-code                a loaded file may name code that is not installed (SECURITY.md)
  --seed N                    root of every random generator (default: 1)
  --env, --env-id ID          the environment
  -n, --total-timesteps N     stop after N env steps (1e6 and 2M are numbers too)
  --run.max_wall_s S          stop after S seconds
  --device auto|cpu|cuda      where the learner computes (default: auto)
  --actors.count N|auto       actor processes (default: auto)
  --actors.n_step N           rewards summed before bootstrapping
  --replay.capacity N         transitions remembered
  --learner.learning_rate X   step size
  --SECTION.KEY VALUE         any other key; --help-all lists them

Examples:
  qfleet train
  qfleet train LunarLander-v3 --actors.count 8 --seed 7
  qfleet train --config run.yaml --runtime local -n 200k
"""

_COMMANDS = (
    *("train", "eval", "play", "status", "scale", "study", "report"),
    *("bench", "doctor", "config"),
)
_SHOW_HELP = """\
qfleet config show [TARGET] [flags of train]   print the whole configuration, each key explained
qfleet config schema                           print the JSON schema of a configuration file
qfleet config reference                        print docs/configuration.md
"""


def _train_help() -> str:
    from qfleet.settings import presets

    names = textwrap.fill(
        ", ".join(presets.names()),
        100,
        initial_indent=" " * 27,
        subsequent_indent=" " * 8,
        break_on_hyphens=False,
    )
    return _TRAIN_HELP.replace("PRESETS", names.lstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing is raised."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) left; without this, closing stdout would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    from qfleet.common.errors import QfleetError

    if isinstance(error, QfleetError) and error.exit_code != 1:
        _print_error(str(error))
        return error.exit_code
    traceback.print_exception(error)
    _print_error(f"this is a bug in qfleet: {type(error).__name__}: {error}")
    return 1


def _print_error(message: str) -> None:
    heading = "qfleet:"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        heading = f"\033[1;31m{heading}\033[0m"
    print(f"{heading} {message}", file=sys.stderr, flush=True)


def _usage_error(message: str) -> NoReturn:
    _print_error(message)
    raise SystemExit(2)


def _dispatch(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(_HELP + "\n" + _train_help(), end="")
        return 0
    if command == "--help-all":
        return _print_help_all()
    if command in ("--version", "-V"):
        print(f"qfleet {__version__}")
        return 0
    handlers: dict[str, Callable[[list[str]], int]] = {"train": _train, "config": _config}
    if command in handlers:
        return handlers[command](rest)
    if command in _COMMANDS:
        arguments = parser_of(command).parse_args(rest)
        return int(importlib.import_module(f"qfleet.commands.{command}").main(arguments) or 0)
    return _unknown_command(command)


def _print_help_all() -> int:
    from qfleet.settings.config_reference import help_all

    print(_train_help() + "\n" + help_all(), end="")
    return 0


def _unknown_command(command: str) -> NoReturn:
    from qfleet.command_line import foreign_names

    if command.startswith("-"):
        _usage_error(f"{command} belongs to a command, such as: qfleet train {command} ...")
    ours = foreign_names.COMMANDS.get(command.replace("-", "_"))
    if ours is not None:
        _usage_error(f"there is no command {command}; here it is `qfleet {ours}`")
    from qfleet.settings import presets

    if command in presets.names() or "-v" in command:
        hint = f"; did you mean `qfleet train {command}`?"
    else:
        hint = foreign_names.did_you_mean(command, _COMMANDS)
    _usage_error(f"there is no command {command}{hint or f'; commands are {_listed()}'}")


def _listed() -> str:
    return ", ".join(_COMMANDS)


def _train(words: list[str]) -> int:
    if any(word in ("--help", "-h") for word in words):
        print(_train_help(), end="")
        return 0
    if "--help-all" in words:
        return _print_help_all()
    from qfleet.command_line.cli_flags import parse_train_arguments
    from qfleet.common.user_code import installed_only
    from qfleet.settings.config_loading import load_config
    from qfleet.settings.trust import names_own_code

    arguments = parse_train_arguments(words)
    saved = _saved_config(arguments.resume, _run_dir(arguments.settings))
    config = load_config(
        arguments.target,
        [*saved, *arguments.files],
        arguments.settings,
        problems=arguments.problems,
        allow_code=arguments.allow_code,
    )
    training = importlib.import_module("qfleet.training")
    own_code = arguments.allow_code or names_own_code(arguments.target, arguments.settings)
    with contextlib.nullcontext() if own_code else installed_only():
        code = training.run_train(
            config,
            resume=arguments.resume,
            run_dir=config.run.dir,
            init_from=arguments.init_from,
        )
    return int(code)


def _run_dir(settings: Sequence[object]) -> str | None:
    from qfleet.settings.yaml_settings import Setting

    for setting in reversed(settings):
        if isinstance(setting, Setting) and setting.path == ("run", "dir"):
            return setting.text
    return None


def _saved_config(resume: str | None, run_dir: str | None) -> list[str]:
    """The run's own config.yaml comes before all files when a run is continued.

    RUN may be the run directory or something in it (`RUN/latest`, `RUN/checkpoints/ckpt-…`).
    Where there is none, the training module says what is wrong with the run.
    """
    start = run_dir if resume == "auto" else resume
    if start is None:
        return []
    path = Path(start)
    candidates = [path] if resume == "auto" else [path, *list(path.parents)[:2]]
    found = (folder / "config.yaml" for folder in candidates)
    return [str(file) for file in found if file.is_file()][:1]


def _config(words: list[str]) -> int:
    action, rest = (words[0], words[1:]) if words else ("--help", [])
    if action in ("--help", "-h") or "--help" in rest or "-h" in rest:
        print(_SHOW_HELP, end="")
        return 0
    from qfleet.settings import config_reference

    if action == "show":
        print(_show(rest), end="")
    elif action in ("schema", "reference") and rest:
        _usage_error(f"qfleet config {action} takes no further words, got {' '.join(rest)}")
    elif action == "schema":
        import json

        print(json.dumps(config_reference.json_schema(), indent=2, ensure_ascii=False))
    elif action == "reference":
        print(config_reference.markdown(), end="")
    else:
        from qfleet.command_line.foreign_names import did_you_mean

        hint = did_you_mean(action, ("show", "schema", "reference"))
        _usage_error(
            f"there is no command config {action}{hint or '; it has show, schema, reference'}"
        )
    return 0


def _show(words: list[str]) -> str:
    from qfleet.command_line.cli_flags import parse_train_arguments
    from qfleet.settings.config_loading import choice_note, load_config
    from qfleet.settings.config_reference import annotated_yaml

    arguments = parse_train_arguments(words)
    config = load_config(
        arguments.target,
        arguments.files,
        arguments.settings,
        problems=arguments.problems,
        allow_code=True,  # nothing of it is imported
    )
    return f"# {choice_note(config)}\n{annotated_yaml(config)}"
