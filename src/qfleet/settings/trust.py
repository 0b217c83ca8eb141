"""Code that a loaded file names: only that of installed packages, unless the user says otherwise.

Called for every `--config` file and for a run's own config.yaml and parameters. Where a value came
from a flag, TARGET or a program's argument, the user has named the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qfleet.common.config import EnvConfig, NetworkConfig
from qfleet.common.errors import ConfigError
from qfleet.common.user_code import is_installed, is_known
from qfleet.settings.config import Config
from qfleet.settings.problems import Problem
from qfleet.settings.yaml_settings import Setting

ALLOW_CODE = "--allow-code"
_OWN_WORDS = ("argument", "TARGET", "default")
_NAMING_KEYS = ("env.factory", "env.id", "network.factory")


def named_code(config: Config) -> dict[str, str]:
    """Module by key, for every key of `config` that names code."""
    return {**env_code(config.env), **network_code(config.network)}


def network_code(network: NetworkConfig) -> dict[str, str]:
    """The module of `network.factory`, if there is one."""
    return _modules({"network.factory": network.factory})


def foreign_code(config: Config) -> dict[str, str]:
    """The part of `named_code` that no installed package holds."""
    return {key: module for key, module in named_code(config).items() if not is_installed(module)}


def loaded_code(config: Config, settings: Sequence[Setting]) -> Iterator[Problem]:
    """What must not be imported or shipped: named by a file and not installed.

    Args:
        config: The whole of it.
        settings: All settings in order; the last of a key decided it.
    """
    for key, module in foreign_code(config).items():
        setting = _deciding(settings, key)
        if setting is not None and is_loaded(setting):
            yield Problem(
                key,
                setting.value,
                f"is named by a file, and {module} is no installed package: it is not imported",
                f"if you trust the file add {ALLOW_CODE}, or say it yourself: "
                f"--{key} {setting.value}",
                setting.origin,
            )
    shipped = _deciding(settings, "ray.ship")
    if config.ray.ship and shipped is not None and is_loaded(shipped):
        yield Problem(
            "ray.ship",
            shipped.value,
            "is named by a file: nothing is sent to other hosts to be imported there",
            f"if you trust the file add {ALLOW_CODE}, or say it yourself with --ray.ship",
            shipped.origin,
        )


def is_loaded(setting: Setting) -> bool:
    """Whether a file said it, and not the user, a preset, a study or a default."""
    own = setting.origin in _OWN_WORDS or setting.origin.startswith(("--", "preset", "study"))
    return not own


def names_own_code(target: str | None, flags: Sequence[Setting]) -> bool:
    """Whether the user's own words name code: then the working directory is searched."""
    names = [setting.value for setting in flags if setting.key in _NAMING_KEYS]
    ships = any(setting.key == "ray.ship" for setting in flags)
    return ships or any(":" in str(name) for name in [target, *names])


def check_loaded(code: dict[str, str], where: str) -> None:
    """Refuse code of a run's files that is not installed.

    Args:
        code: Module by key.
        where: The file, for the message.

    Raises:
        ConfigError: with the remedy.
    """
    foreign = {key: module for key, module in code.items() if not is_known(module)}
    for key, module in foreign.items():
        raise ConfigError(
            f"{where} names code of {module} ({key}), which is no installed package: a file that "
            "is loaded imports nothing else; if you trust it add --allow-code (in Python "
            f"allow_code=True, or import {module} first)"
        )


def env_code(env: EnvConfig) -> dict[str, str]:
    """The module of `env.factory`, else the one before the colon of `env.id`."""
    if env.factory is not None:
        return _modules({"env.factory": env.factory})
    return _modules({"env.id": env.id})


def _modules(names: dict[str, str | None]) -> dict[str, str]:
    """The part before the colon: `module:function` and Gymnasium's `module:Id`."""
    split = {key: (name or "").partition(":") for key, name in names.items()}
    return {key: module for key, (module, colon, _) in split.items() if colon}


def _deciding(settings: Sequence[Setting], key: str) -> Setting | None:
    found = (s for s in reversed(settings) if ".".join(s.path[:2]) == key)
    return next(found, None)
