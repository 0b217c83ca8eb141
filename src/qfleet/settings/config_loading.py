"""From TARGET, files and overrides to one valid configuration, or one error that lists everything.

Called by the command line and by `qfleet.Config.preset`. Later wins: defaults, preset, files from
left to right, flags. Only pydantic and PyYAML are imported, Gymnasium where an id must be checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qfleet.command_line.foreign_conversions import Scales, number_in
from qfleet.command_line.foreign_line import Asked, foreign_line
from qfleet.command_line.foreign_names import closest, did_you_mean, explain
from qfleet.command_line.target import check_env_id, choose
from qfleet.common.config import parse_count
from qfleet.common.errors import ConfigError
from qfleet.settings import config as models
from qfleet.settings import config_reference, presets
from qfleet.settings.checks.machine_checks import nvidia_gpus
from qfleet.settings.checks.unused_settings import unused_settings
from qfleet.settings.config_checks import check_config
from qfleet.settings.problems import Problem
from qfleet.settings.trust import loaded_code
from qfleet.settings.yaml_settings import Setting, dump, read_settings

PRESET_PREFIX = "preset:"


class Config(models.Config):
    """A whole run, as `qfleet.Config`: the same keys, and `preset` to start from one."""

    @classmethod
    def preset(cls, name: str, overrides: Mapping[str, object] | None = None) -> Config:
        """Return a preset with some keys changed; `ConfigError` lists all that is wrong.

        Args:
            name: A preset or an environment id, as `qfleet train` takes it.
            overrides: Dotted keys to values: `{"actors.count": 4}`.
        """
        return load_config(name, overrides=overrides or {})


def load_config(
    target: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Mapping[str, object] | Sequence[Setting] = (),
    *,
    problems: Iterable[Problem] = (),
    allow_code: bool = False,
) -> Config:
    """Build the configuration, or raise one `ConfigError` with every problem of every source.

    Args:
        target: A preset or an environment id; None: the other sources say, else the default.
        files: YAML files, or `preset:NAME`.
        overrides: Flags, or dotted keys to values.
        problems: What is already known to be wrong (by the command line's reader).
        allow_code: Whether a file may name code that is not installed.
    """
    found = list(problems)
    given: list[Setting] = []
    for name in files:
        settings, wrong = _read_file(str(name))
        given += settings
        found += wrong
    given += _as_settings(overrides)
    known = [_typed(setting) for setting in given if _is_key(setting.path)]
    choice = choose(target, known)
    found += choice.problems
    known = [*_preset_settings(choice.preset), *known, *choice.settings]
    scales = _scales(known, given)
    unknown = [setting for setting in given if not _is_key(setting.path)]
    found += [_unknown_key(setting, scales) for setting in unknown]
    config, wrong = _validate(known)
    found += wrong
    found += _rules_between_keys(config, known, {p.key for p in found})
    found += unused_settings(config, known)
    found += check_env_id(config, known, skip=bool(choice.problems))
    found += [] if allow_code else loaded_code(config, known)
    if found:
        asked = Asked(target, [str(name) for name in files], given)
        raise ConfigError(error_message(found) + foreign_line(asked, unknown, scales, config))
    return config


def error_message(problems: Sequence[Problem]) -> str:
    """Return one line for each problem under a heading."""
    settings = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
    heading = f"{settings} cannot be used, so nothing was started:"
    return "\n".join([heading, *(f"  {problem}" for problem in problems)])


def choice_note(config: models.Config) -> str:
    """Say in a sentence which preset the environment got, for the first line of output."""
    env_id, preset = config.env.id, config.preset_name
    own = presets.load(preset).get("env", {}).get("id") if preset in presets.names() else None
    if own == env_id:
        return f"{env_id}: preset '{preset}'"
    if own is None:
        return f"{env_id}: no preset of its own, took '{preset}'"
    return f"{env_id}: settings and budget of preset '{preset}', which was made for {own}"


def dump_yaml(config: models.Config) -> str:
    """Write every key as YAML; as `--config` it gives the same configuration again."""
    try:
        return dump(config_reference.plain_content(config))
    except yaml.YAMLError as error:
        raise ConfigError(
            "env.kwargs and network.kwargs must hold text, numbers, lists and mappings to be "
            f"written to config.yaml: {error}"
        ) from error


def _read_file(name: str) -> tuple[list[Setting], list[Problem]]:
    if name.startswith(PRESET_PREFIX):
        preset = name.removeprefix(PRESET_PREFIX)
        if preset not in presets.names():
            hint = did_you_mean(preset, presets.names()).lstrip("; ")
            text = f"is not a preset; presets are {', '.join(presets.names())}"
            return [], [Problem("--config", name, text, hint)]
        return [*_preset_settings(preset), Setting(("preset",), preset, name)], []
    path = Path(name)
    if path.is_dir():
        return [], [Problem("--config", name, "is a directory", f"try {path / 'config.yaml'}")]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return [], [Problem("--config", name, f"cannot be read: {reason}", _nearby(path))]
    return read_settings(text, name, config_reference.section_names())


def _nearby(path: Path) -> str:
    """Suggest a file beside the missing one, or the preset that was probably meant."""
    if path.name in presets.names():
        return f"for the preset write --config {PRESET_PREFIX}{path.name}"
    folder = path.parent
    hits = closest(path.name, os.listdir(folder) if folder.is_dir() else [], 1)
    return f"did you mean {folder / hits[0]}?" if hits else ""


def _preset_settings(name: str) -> list[Setting]:
    settings, problems = read_settings(
        presets.read(name), f"preset {name}", config_reference.section_names(), lines=False
    )
    if problems:
        raise ConfigError(error_message(problems))
    return settings


def _as_settings(overrides: Mapping[str, object] | Sequence[Setting]) -> list[Setting]:
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [
        Setting(tuple(key.replace("-", "_").split(".")), value, "argument")
        for key, value in overrides.items()
    ]


def _is_key(path: tuple[str, ...]) -> bool:
    keys = config_reference.keys()
    doc = keys.get(".".join(path[:2]))
    return ".".join(path) in keys or (doc is not None and doc.takes_mapping and len(path) > 2)


def _typed(setting: Setting) -> Setting:
    """Keep text as typed where text is wanted: a directory named 2024 is not a number."""
    doc = config_reference.keys().get(setting.key)
    if setting.text is None or setting.value is None or doc is None or not doc.takes_text:
        return setting
    return replace(setting, value=setting.text)


def _nest(settings: Iterable[Setting]) -> dict[str, Any]:
    """Merge settings in order; a deeper key changes one entry, a whole mapping replaces."""
    root: dict[str, Any] = {}
    for setting in settings:
        place = root
        for name in setting.path[:-1]:
            deeper = place.get(name)
            place[name] = dict(deeper) if isinstance(deeper, dict) else {}
            place = place[name]
        place[setting.path[-1]] = setting.value
    return root


def _scales(known: Iterable[Setting], given: Iterable[Setting]) -> Scales:
    """What unit conversions need, from whatever of it is readable."""
    nested = _nest(known)
    others = {setting.path[-1]: setting.value for setting in given if not _is_key(setting.path)}

    def number(section: str, key: str) -> float | None:
        value = nested.get(section, {}).get(
            key, config_reference.keys()[f"{section}.{key}"].default
        )
        value = parse_count(value) if not isinstance(value, bool) else None
        return float(value) if isinstance(value, int | float) and value > 0 else None

    return Scales(
        batch_size=number_in(others.get("batch_size")) or number("learner", "batch_size") or 64.0,
        samples_per_insert=number("replay", "samples_per_insert"),
        max_env_steps=number("run", "max_env_steps"),
        others=others,
    )


def _unknown_key(setting: Setting, scales: Scales) -> Problem:
    """Say what was probably meant: another program's name, another section, or a typo."""
    keys, last = config_reference.keys(), setting.path[-1]
    if setting.key in config_reference.section_names():
        inner = next(key for key in keys if key.startswith(f"{setting.key}."))
        remedy = f"set its keys, such as {inner}"
        return Problem(setting.key, setting.value, "is a section", remedy, setting.origin)
    is_flag = setting.origin.startswith("--")
    typed = setting.value if setting.text is None else setting.text
    foreign = explain(last, setting.value, scales, as_flags=is_flag)
    same = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    if foreign and (len(setting.path) == 1 or not same):
        return Problem(setting.key, typed, "is not a qfleet key", foreign, setting.origin)
    if not same:
        same = closest(setting.key, [*keys, *config_reference.section_names()])
    if not same:
        lasts = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
        same = [lasts[hit] for hit in closest(last, lasts)]
    dashes = "--" if is_flag else ""
    hint = f"did you mean {' or '.join(dashes + key for key in same)}?" if same else ""
    remedy = hint or "`qfleet train --help-all` lists every key"
    return Problem(setting.key, typed, "is not a key", remedy, setting.origin)


def _validate(settings: list[Setting]) -> tuple[Config, list[Problem]]:
    """Validate the merged whole; a value that is wrong is reported and then left out."""
    try:
        return Config.model_validate(_nest(settings)), []
    except ValidationError as error:
        messages = _requirements(error)
    problems = []
    for key, requirement in messages.items():
        setting = _source(key, settings)
        hint = ""
        if isinstance(setting.value, str):
            hint = did_you_mean(setting.value, config_reference.keys()[key].choices).lstrip("; ")
        problems.append(Problem(key, setting.value, requirement, hint, setting.origin))
    rest = [s for s in settings if ".".join(s.path[:2]) not in messages]
    return Config.model_validate(_nest(rest)), problems


def _requirements(error: ValidationError) -> dict[str, str]:
    """One sentence for each wrong key, whatever pydantic says about each branch of a union."""
    messages: dict[str, str] = {}
    keys = config_reference.keys()
    for detail in error.errors():
        path = [str(part) for part in detail["loc"]]
        key = path[0] if path[0] in keys else ".".join(path[:2])
        requirement = f"must be {_article(keys[key].values)}"
        if key.endswith(".factory") and detail["type"] == "value_error":
            requirement = str(detail["ctx"]["error"])
        messages[key] = requirement
    return messages


def _article(values: str) -> str:
    countable = values.startswith(("whole", "number", "list", "mapping"))
    return f"a {values}" if countable else values


def _source(key: str, settings: Sequence[Setting]) -> Setting:
    """The setting that decided `key` (the last one, or its last deeper key)."""
    for setting in reversed(settings):
        if ".".join(setting.path[:2]) == key:
            return setting
    return Setting(tuple(key.split(".")), config_reference.keys()[key].default, "default")


def _rules_between_keys(
    config: Config, settings: Sequence[Setting], reported: set[str]
) -> list[Problem]:
    """Problems between keys, each with the place where its value came from."""
    gpus = nvidia_gpus()
    problems = check_config(
        config,
        None,
        cpus=os.cpu_count() or 1,
        gpus=gpus,
        memory_bytes=0,
        cuda_available=gpus > 0 if config.runtime == "local" else None,
    )
    return [
        replace(problem, origin=_source(problem.key, settings).origin)
        for problem in problems
        if problem.key not in reported
    ]
