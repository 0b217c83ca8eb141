"""The words after `qfleet train` as a target, files and settings; nothing is validated here.

Called by cli.py. It raises nothing: what cannot be read becomes a `Problem`, so that the user sees
it beside everything that config_loading.py finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from qfleet.command_line import foreign_names
from qfleet.command_line.foreign_conversions import Scales
from qfleet.settings.problems import Problem
from qfleet.settings.trust import ALLOW_CODE
from qfleet.settings.yaml_settings import Setting, parse_value

_ALIASES: dict[str, tuple[str, ...]] = {
    "env": ("env", "id"),
    "env_id": ("env", "id"),
    "total_timesteps": ("run", "max_env_steps"),
    "n": ("run", "max_env_steps"),
    "device": ("learner", "device"),
    "run_dir": ("run", "dir"),
}
_SHORT = ("-n", "-h")
_NUMBER = re.compile(r"-(\d|\.\d|\.?inf)")
_FLAGS = ("double_q", "target_network", "stop_when_solved")


@dataclass(slots=True)
class TrainArguments:
    """What stood on the command line of `train` or `config show`."""

    target: str | None = None
    files: list[str] = field(default_factory=list)
    resume: str | None = None
    init_from: str | None = None
    allow_code: bool = False
    settings: list[Setting] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def parse_train_arguments(argv: Sequence[str]) -> TrainArguments:
    """Read TARGET and flags; `-` equals `_` in names, and `=` or a space comes before the value."""
    arguments = TrainArguments()
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not _is_flag(word):
            _take_positional(word, arguments)
            continue
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == ALLOW_CODE and not equals:
            arguments.allow_code = True
            continue
        if not equals:
            if position >= len(argv) or _is_flag(argv[position]):
                _take_bare(name, arguments)
                continue
            value = argv[position]
            position += 1
        _take_flag(name, value, arguments)
    return arguments


def _is_flag(word: str) -> bool:
    return word.partition("=")[0] in _SHORT or word.startswith("--")


def _take_positional(word: str, arguments: TrainArguments) -> None:
    if word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
        requirement = "is not a flag: names start with two dashes"
        arguments.problems.append(Problem(word, "", requirement, f"write -{word} VALUE"))
    elif arguments.target is None:
        arguments.target = word
    else:
        arguments.problems.append(
            Problem(
                "TARGET",
                word,
                f"is one word too many: TARGET is already {arguments.target}",
                "a value belongs right after its flag: --SECTION.KEY VALUE",
            )
        )


def _take_flag(name: str, text: str, arguments: TrainArguments) -> None:
    bare = name.lstrip("-").replace("-", "_")
    if bare == "allow_code":
        arguments.problems.append(Problem(name, text, "takes no value", f"write {ALLOW_CODE}"))
    elif bare == "config":
        arguments.files.append(text)
    elif bare == "resume":
        if arguments.resume is not None:
            arguments.problems.append(Problem("--resume", text, "is given twice", "keep one"))
        arguments.resume = text
    elif bare == "init_from":
        if arguments.init_from is not None:
            arguments.problems.append(Problem("--init-from", text, "is given twice", "keep one"))
        arguments.init_from = text
    else:
        path = _ALIASES.get(bare) or tuple(bare.split("."))
        arguments.settings.append(Setting(path, parse_value(text), _origin(name, path), text))


def _origin(name: str, path: tuple[str, ...]) -> str:
    """The flag as typed; `-n` is spelt out so that origins of flags always start with `--`."""
    return name if name.startswith("--") else f"--{'.'.join(path)}, {name}"


def _take_bare(name: str, arguments: TrainArguments) -> None:
    """A flag without a value: a switch of another program, or a mistake."""
    bare = name.lstrip("-").replace("-", "_")
    foreign = foreign_names.switch(bare)
    if foreign is not None:
        path = (*bare.split(".")[:-1], foreign[0])
        text = "true" if foreign[1] else "false"
        arguments.settings.append(Setting(path, foreign[1], name, text))
    else:
        arguments.problems.append(_without_value(name, bare))


def _without_value(name: str, bare: str) -> Problem:
    if bare in ("h", "help", "help_all"):
        return Problem(name, "", "must stand alone", f"qfleet train {name}")
    if bare.startswith("no_") or ".no_" in bare:
        positive = "--" + bare.replace("no_", "", 1)
        return Problem(name, "", "is not a flag", f"write {positive} false")
    if bare.rsplit(".", 1)[-1] in _FLAGS:
        return Problem(name, "", "needs a value", f"write {name} true or {name} false")
    foreign = foreign_names.explain(bare, "VALUE", Scales(), as_flags=True)
    if foreign is not None:
        return Problem(name, "", "is not a qfleet key", foreign)
    return Problem(name, "", "needs a value", f"write {name} VALUE")
