"""Which preset a run starts from, and whether its environment exists.

Called by config_loading.py. Gymnasium is imported only for an id that no preset names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from qfleet.command_line.foreign_names import closest
from qfleet.common.config import parse_factory
from qfleet.common.errors import ConfigError
from qfleet.common.optional_games import bare_id, install_line, namespace, register_games
from qfleet.settings import presets
from qfleet.settings.config import Config
from qfleet.settings.problems import Problem
from qfleet.settings.yaml_settings import Setting

_EXAMPLES = {"atari": "ALE/Pong-v5", "minatar": "MinAtar/Freeway-v0"}
"""An environment for presets that name none; Acrobot for the others."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The preset to start from, settings that follow from TARGET, and what is wrong with it."""

    preset: str
    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]


def choose(target: str | None, given: Sequence[Setting]) -> Choice:
    """Choose the preset: TARGET, else the key `preset`, else by environment, else the default.

    An environment takes the preset made for it, else `generic` or, where it observes images,
    `generic-pixels`, so that it never inherits the budget of another one.
    """
    preset = _last(given, "preset")
    env_id = _last(given, "env.id")
    factory = _last(given, "env.factory")
    problems: list[Problem] = []
    settings: list[Setting] = []
    if target is not None and target not in presets.names():
        problems += _target_problems(target, env_id)
        settings.append(Setting(("env", "id"), target, "TARGET"))
        env_id = settings[-1]
    elif target is not None:
        problems += _disagreement("preset", target, preset)
        preset = Setting(("preset",), target, "TARGET")
    name = _factory_name(factory)
    if factory is not None and name is not None and env_id is None:
        # The id of a preset would name an environment that is not played.
        settings.append(Setting(("env", "id"), name, factory.origin))
    base, wrong = _base(preset, env_id or factory)
    problems += wrong
    if base in presets.WITHOUT_ENVIRONMENT and env_id is None and factory is None:
        example = _EXAMPLES.get(base, "Acrobot-v1")
        remedy = f"name one: `qfleet train {example}` or --env {example}"
        problems.append(Problem("env.id", None, f"preset {base} names no environment", remedy))
    settings.append(Setting(("preset",), base, "TARGET"))
    return Choice(base, tuple(settings), tuple(problems))


def check_env_id(config: Config, settings: Sequence[Setting], *, skip: bool) -> list[Problem]:
    """Check that Gymnasium knows `env.id`; `module:Id` and factories are checked when made."""
    env_id = config.env.id
    if skip or config.env.factory is not None or _exists(env_id):
        return []
    setting = _last(settings, "env.id")
    origin = setting.origin if setting is not None else "default"
    requirement, remedy = _unknown_env(env_id)
    return [Problem("env.id", env_id, requirement, remedy, origin)]


def _factory_name(factory: Setting | None) -> str | None:
    """`module:function`, or None when there is no factory or validation will refuse it."""
    try:
        name = parse_factory(factory.value) if factory is not None else None
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _base(preset: Setting | None, env: Setting | None) -> tuple[str, list[Problem]]:
    if preset is not None:
        name = str(preset.value)
        if name in presets.names():
            return name, []
        hits = closest(name, presets.names())
        remedy = f"did you mean {' or '.join(hits)}?" if hits else ""
        requirement = f"is not a preset; presets are {', '.join(presets.names())}"
        return presets.DEFAULT, [Problem("preset", name, requirement, remedy, preset.origin)]
    if env is None:
        return presets.DEFAULT, []
    return presets.preset_for_env(str(env.value)) or _generic_for(env), []


def _generic_for(env: Setting) -> str:
    """`generic-pixels` where the environment observes images; what cannot be made is told later."""
    from qfleet.common.config import EnvConfig
    from qfleet.common.envs import observes_images

    try:
        config = EnvConfig(**{env.key.removeprefix("env."): str(env.value)})
    except ValueError:
        return presets.GENERIC
    is_image = observes_images(config)
    return presets.GENERIC_PIXELS if is_image else presets.GENERIC


def _target_problems(target: str, env_id: Setting | None) -> list[Problem]:
    if not _exists(target):
        requirement, remedy = _unknown_env(target)
        near = [] if remedy.startswith("pip ") else closest(target, presets.names(), 1)
        if target.endswith((".yaml", ".yml")):
            remedy = f"for a file write --config {target}"
        elif near:
            known = remedy.startswith("did you mean ")
            other = f", or {remedy.removeprefix('did you mean ')}" if known else "?"
            remedy = f"did you mean the preset {near[0]}{other}"
        return [Problem("TARGET", target, f"is no preset, and {requirement}", remedy)]
    return _disagreement("env.id", target, env_id)


def _disagreement(key: str, target: str, flag: Setting | None) -> list[Problem]:
    """TARGET beats a file, but two different words on one command line are a mistake."""
    if flag is None or not flag.origin.startswith("--") or flag.value == target:
        return []
    requirement = f"contradicts TARGET, which is {target}"
    return [Problem(key, flag.value, requirement, "give one of the two", flag.origin)]


def _exists(env_id: str) -> bool:
    if namespace(env_id) is None and (":" in env_id or presets.preset_for_env(env_id) is not None):
        return True
    import gymnasium

    with contextlib.suppress(ConfigError):
        register_games(env_id)
    return bare_id(env_id) in gymnasium.registry


def _unknown_env(env_id: str) -> tuple[str, str]:
    import gymnasium

    games = namespace(env_id)
    if games is not None:
        try:
            register_games(env_id)
        except ConfigError as error:
            return str(error).removesuffix(f": {install_line(games)}"), install_line(games)
        env_id = bare_id(env_id)
    hits = closest(env_id, gymnasium.registry, 2)
    remedy = f"did you mean the environment {' or '.join(hits)}?" if hits else ""
    return f"Gymnasium knows no environment {env_id}", remedy or (
        "for one of your own write module:Id, or set env.factory"
    )


def _last(settings: Sequence[Setting], key: str) -> Setting | None:
    """The last setting of a key, unless it says null."""
    for setting in reversed(settings):
        if setting.key == key:
            return setting if setting.value is not None else None
    return None
