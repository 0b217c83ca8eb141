"""What an agent sees and thinks, drawn beside its game: its observation, and Q-values as bars.

Given to `record_play` by `qfleet play`. Frames and planes are shown as the network gets them, a
short state as its numbers. All bars of a film have one scale, which grows when a value leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qfleet.common.types import Array, EnvironmentSpec

WIDTH_PIXELS = 280
_MARGIN = 8
_TITLE_HEIGHT = 22
_ROW_HEIGHT = 18
_LABEL_WIDTH, _VALUE_WIDTH = 74, 58
_LEAST_TILES_HEIGHT = 130
_MOST_VALUES = 12
"""Numbers of a state that are shown."""
_DARK, _WHITE, _DIM, _CHOSEN = (24, 24, 24), (240, 240, 240), (110, 130, 150), (255, 176, 0)


class AgentView:
    """Draws panels of one size for observations of one run; owned by whoever films."""

    def __init__(
        self,
        q_values: Callable[[Array], Array],
        spec: EnvironmentSpec,
        action_names: Sequence[str] | None = None,
    ) -> None:
        """`q_values` answers float [1, A] for one observation."""
        self._q_values, self._spec = q_values, spec
        numbers = [str(action) for action in range(spec.n_actions)]
        self._names = list(action_names) if action_names is not None else numbers
        self._lowest, self._highest = np.inf, -np.inf

    def beside(self, picture: Array, observation: Array) -> Array:
        """`picture` uint8 [H, W, 3] with the panel at its right; the higher of the two decides."""
        panel = self.panel(observation, picture.shape[0])
        height = max(picture.shape[0], panel.shape[0])
        return np.concatenate([_padded(part, height) for part in (picture, panel)], axis=1)

    def panel(self, observation: Array, height: int) -> Array:
        """uint8 [at least height, WIDTH_PIXELS, 3]."""
        bars = self._bars(np.asarray(self._q_values(observation)).reshape(-1))
        seen = self._seen(observation, max(_LEAST_TILES_HEIGHT, height - len(bars)))
        return np.concatenate([bars, seen])

    def _bars(self, q_values: Array) -> Array:
        """A row for each action: its name, a bar on the film's scale, its value."""
        self._lowest = min(self._lowest, float(q_values.min()))
        self._highest = max(self._highest, float(q_values.max()))
        room = WIDTH_PIXELS - _LABEL_WIDTH - _VALUE_WIDTH - _MARGIN
        extent = max(self._highest - self._lowest, 1e-9)
        rows = _blank(_TITLE_HEIGHT + _ROW_HEIGHT * len(q_values) + _MARGIN)
        _write(rows, "Q-values", _MARGIN, 15, _WHITE)
        best = int(q_values.argmax())
        for action, value in enumerate(q_values.tolist()):
            top = _TITLE_HEIGHT + _ROW_HEIGHT * action
            colour = _CHOSEN if action == best else _DIM
            length = 2 + round((room - 2) * (value - self._lowest) / extent)
            rows[top + 3 : top + _ROW_HEIGHT - 3, _LABEL_WIDTH : _LABEL_WIDTH + length] = colour
            _write(rows, self._names[action][:9], _MARGIN, top + 13, colour)
            _write(rows, f"{value:.3f}", _LABEL_WIDTH + room + 4, top + 13, colour)
        return rows

    def _seen(self, observation: Array, height: int) -> Array:
        """The observation as the network gets it."""
        tiles = _blank(height)
        if not self._spec.is_spatial:
            values = np.asarray(observation).reshape(-1)
            _write(tiles, f"it sees {values.size} numbers", _MARGIN, 15, _WHITE)
            n_rows = (height - _TITLE_HEIGHT) // _ROW_HEIGHT
            for row, value in enumerate(values[: min(_MOST_VALUES, n_rows)].tolist()):
                at = _TITLE_HEIGHT + _ROW_HEIGHT * row + 13
                _write(tiles, f"{value:+.4f}", _MARGIN, at, _DIM)
            return tiles
        is_stack = self._spec.frame_stack is not None
        kind = "frames, the newest last" if is_stack else "planes"
        _write(tiles, f"it sees {len(observation)} {kind}", _MARGIN, 15, _WHITE)
        _place_tiles(tiles[_TITLE_HEIGHT:], np.asarray(observation), smooth=is_stack)
        return tiles


def action_names(env: Any) -> list[str] | None:
    """What the environment calls its actions; None where it has no names for them."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    return None if meanings is None else [str(name).lower() for name in meanings()]


def _place_tiles(room: Array, pictures: Array, *, smooth: bool) -> None:
    """Draw uint8 `pictures` [n, H, W] into `room`, as large as they fit, row by row."""
    import cv2

    n = len(pictures)
    height, width = room.shape[:2]

    def side(columns: int) -> int:
        rows = -(-n // columns)
        return int(min((width - _MARGIN) // columns, (height - _MARGIN) // rows)) - _MARGIN

    columns = max(range(1, n + 1), key=side)
    size = max(side(columns), 1)
    method = cv2.INTER_AREA if smooth and size < pictures.shape[1] else cv2.INTER_NEAREST
    scale = 1 if smooth else 255 // max(1, int(pictures.max()))
    for index, picture in enumerate(pictures):
        top = _MARGIN + (index // columns) * (size + _MARGIN)
        left = _MARGIN + (index % columns) * (size + _MARGIN)
        tile = cv2.resize(picture * np.uint8(scale), (size, size), interpolation=method)
        room[top : top + size, left : left + size] = tile[..., None]


def _blank(height: int) -> Array:
    return np.full((height, WIDTH_PIXELS, 3), _DARK, dtype=np.uint8)


def _padded(picture: Array, height: int) -> Array:
    missing = height - picture.shape[0]
    below = np.full((missing, picture.shape[1], 3), _DARK, dtype=np.uint8)
    return np.concatenate([picture, below]) if missing else picture


def _write(picture: Array, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    import cv2

    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
