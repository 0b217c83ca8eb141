"""The presets that ship with qfleet: one YAML file each under preset_files/.

Called by config_loading.py; the files are read on demand and nothing heavy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qfleet.command_line.foreign_names import did_you_mean
from qfleet.common.errors import ConfigError
from qfleet.common.optional_games import bare_id, namespace

DEFAULT = "cartpole"
GENERIC = "generic"
GENERIC_PIXELS = "generic-pixels"
OF_NAMESPACE = {"ALE": "atari", "MinAtar": "minatar"}
"""For the ids of a namespace that have no preset of their own; they name no environment."""
WITHOUT_ENVIRONMENT = (GENERIC, GENERIC_PIXELS, *OF_NAMESPACE.values())

_FOLDER = Path(__file__).parent / "preset_files"


def names() -> tuple[str, ...]:
    """Names of all presets, the default first."""
    found = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def read(name: str) -> str:
    """Return the YAML text of a preset; `ConfigError` when there is none of that name."""
    if name not in names():
        raise ConfigError(
            f"preset = {name}: there is no such preset{did_you_mean(name, names())}; "
            f"presets are {', '.join(names())}"
        )
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Return a preset as the nested mapping it is; `ConfigError` when there is none."""
    from qfleet.settings.yaml_settings import parse_value  # loads yaml

    content = parse_value(read(name))
    if not isinstance(content, dict):
        raise TypeError(f"preset_files/{name}.yaml must hold a mapping")
    return content


def preset_for_env(env_id: str) -> str | None:
    """The preset made for this environment (the default first, then by name) or its namespace."""
    for name in names():
        if load(name).get("env", {}).get("id") == bare_id(env_id):
            return name
    return OF_NAMESPACE.get(namespace(env_id) or "")
