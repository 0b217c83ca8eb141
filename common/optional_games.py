"""Environment ids whose package is an extra of ours: known to Gymnasium only once it is asked.

Called before an environment is made and wherever an id is looked up. A user writes the id alone,
`ALE/Pong-v5`, or with the module that registers it, `ale_py:ALE/Pong-v5`: both are the same here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from qfleet.common.errors import ConfigError


class OptionalGames(NamedTuple):
    """The games of one package."""

    extra: str
    """Of ours, which installs it."""
    register: Callable[[], object]
    """Raises `ModuleNotFoundError` where it is not installed."""


def _register_atari() -> None:
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner in every process


def _register_minatar() -> None:
    from qfleet.common import minatar_games  # loads gymnasium

    minatar_games.register()


OPTIONAL_GAMES = {
    "ALE": OptionalGames("atari", _register_atari),
    "MinAtar": OptionalGames("minatar", _register_minatar),
}
"""By the namespace of their ids."""


def bare_id(env_id: str) -> str:
    """The id without the module that registers it, where that is a package of ours."""
    module, _, name = env_id.rpartition(":")
    return name if module in ("", "ale_py", "minatar", "minatar.gym") else env_id


def namespace(env_id: str) -> str | None:
    """Of an id of such a package; None for any other."""
    name, separator, _ = bare_id(env_id).partition("/")
    return name if separator and name in OPTIONAL_GAMES else None


def register_games(env_id: str) -> None:
    """Make `env_id` known to Gymnasium where it belongs to such a package.

    Raises:
        ConfigError: when the package is not installed, with the line that installs it.
    """
    name = namespace(env_id)
    if name is None:
        return
    games = OPTIONAL_GAMES[name]
    try:
        games.register()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{env_id} needs an optional package ({error}): {install_line(name)}"
        ) from error


def install_line(name: str) -> str:
    """What a user types to have the games of a namespace."""
    return f"pip install 'qfleet[{OPTIONAL_GAMES[name].extra}]'"
