"""MinAtar's games as Gymnasium environments: `MinAtar/Breakout-v0` and the other ids of its paper.

Registered by `optional_games.py`. The package's own registration is an entry point that Gymnasium
no longer asks, and importing it loads matplotlib, seaborn and pandas into every actor (130 MB and
seconds), so a game's module is loaded by its file.

Source: Young and Tian 2019 (MinAtar), package MinAtar 1.0.15.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qfleet.common.types import Array

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
N_ACTIONS = 6
"""Nothing, left, up, right, down, fire: in `-v0` all of them, whether they do something or not."""
_MEANINGS = ("noop", "left", "up", "right", "down", "fire")
STICKY_PROBABILITY = 0.1
_BLACK = (12, 12, 16)
_COLOURS = (
    *((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66)),
    *((213, 94, 0), (0, 114, 178), (170, 170, 170), (255, 255, 255), (120, 94, 240)),
)
"""Of the planes in their order; a later one lies on top."""
_ENTRY_POINT = f"{__name__}:MinAtarGame"


def register() -> None:
    """Make the ids known to Gymnasium.

    Raises:
        ModuleNotFoundError: when MinAtar is not installed.
    """
    _folder()
    for game in GAMES:
        name = game.title().replace("_", "")
        for version, minimal in ((0, False), (1, True)):
            env_id = f"MinAtar/{name}-v{version}"
            if env_id not in gymnasium.registry:
                kwargs = {"game": game, "use_minimal_action_set": minimal}
                gymnasium.register(id=env_id, entry_point=_ENTRY_POINT, kwargs=kwargs)


def _folder() -> Path:
    """Where the package lies; it is not imported."""
    found = importlib.util.find_spec("minatar")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'minatar'", name="minatar")
    return Path(found.submodule_search_locations[0])


def _module(game: str) -> ModuleType:
    path = _folder() / "environments" / f"{game}.py"
    found = importlib.util.spec_from_file_location(f"minatar_{game}", path)
    assert found is not None, "a source file has a spec"
    assert found.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class MinAtarGame(gymnasium.Env[Array, Any]):
    """One game; observes bool [10, 10, C] planes. Its episodes are never truncated."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # Gymnasium's own

    def __init__(
        self,
        game: str,
        use_minimal_action_set: bool = False,
        sticky_action_prob: float = STICKY_PROBABILITY,
        difficulty_ramping: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self._game = _module(game).Env(ramping=difficulty_ramping)
        self._sticky_probability = sticky_action_prob
        self._random = np.random.RandomState()
        self._last_action = 0
        minimal = self._game.minimal_action_set()
        self._actions = list(minimal) if use_minimal_action_set else list(range(N_ACTIONS))
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 1, tuple(self._game.state_shape()), dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; as in the package, a seed is that of NumPy's old generator."""
        super().reset(seed=seed)
        if seed is not None:
            self._random = self._game.random = np.random.RandomState(seed)
        self._game.reset()
        return self._game.state(), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play `action`, or with the sticky probability the one before again."""
        chosen = self._actions[action]
        if self._random.rand() < self._sticky_probability:
            chosen = self._last_action
        self._last_action = chosen
        reward, is_over = self._game.act(chosen)
        return self._game.state(), float(reward), bool(is_over), False, {}

    def get_action_meanings(self) -> list[str]:
        """What each action does, in order."""
        return [_MEANINGS[action] for action in self._actions]

    def render(self) -> Any:
        """uint8 [10, 10, 3]: each plane in its colour."""
        picture = np.full((*self._game.state_shape()[:2], 3), _BLACK, dtype=np.uint8)
        for plane, colour in zip(np.moveaxis(self._game.state(), -1, 0), _COLOURS, strict=False):
            picture[plane.astype(bool)] = colour
        return picture
