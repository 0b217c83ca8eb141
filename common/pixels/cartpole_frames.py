"""CartPole's gray frames straight from its states, without drawing 600 × 400 pixels for each.

Called by the vector environment adapter where `env.renderer` is `fast`. A frame is what
`gray_frame` makes of Gymnasium's own `rgb_array`: the same raster (integer vertices, anti-aliased
outlines, drawn by pygame once per shape and kept), gray before it is shrunk, area-averaged. Only
the region around the cart is averaged; the rest of a frame never changes.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from qfleet.common.errors import InvariantError
from qfleet.common.pixels.gray_frames import area_weights, gray
from qfleet.common.types import Array

_WIDTH_PX, _HEIGHT_PX = 600, 400
_PX_PER_METRE = _WIDTH_PX / 4.8
_CART_HALF_WIDTH, _CART_HALF_HEIGHT, _CART_Y = 25.0, 15.0, 100
_AXLE_Y = _CART_Y + 7.5
_POLE_CORNERS = np.array([(-5.0, -5.0), (-5.0, 120.0), (5.0, 120.0), (5.0, -5.0)])
"""Of the upright pole about its axle, in the order in which Gymnasium draws them."""
_AXLE_RADIUS = 5
_BLACK, _WOOD, _BLUE, _WHITE = (0, 0, 0), (202, 152, 101), (129, 132, 203), (255, 255, 255)
_REACH = 64
"""Pixels to either side of the cart's middle that a shape may cover: tilts up to 0.5 rad."""
_SNAP_RAD = 1e-6
"""pygame turns a vector by an angle below this not at all."""
_MOST_SHAPES = 4096
"""Shapes kept, of about 16 kB each; all that episodes can show are some 700."""


class CartPoleFrames:
    """Draws `uint8 [E, S, S]` from states `[E, 4]`; owned by one thread.

    A *shape* is what cart and pole look like relative to the cart's integer position. It depends on
    the truncated corners alone, so shapes are drawn once, averaged vertically and kept.
    """

    def __init__(self, size_px: int) -> None:
        self._size_px = size_px
        empty = _gray_raster([], [], None)
        self._down = area_weights(_HEIGHT_PX, size_px)
        averaged = self._down @ empty  # [S, 2·reach]
        self._background = np.repeat(_rounded(averaged[:, :1]), size_px, axis=1)
        self._empty_column = averaged[:, :1]
        self._first_columns, self._across = _column_weights(size_px)
        self._shapes: dict[bytes, tuple[slice, Array]] = {}

    def frames(self, states: Array) -> Array:
        """The frames of `states` float64 [E, 4] as `env.state` holds them.

        Raises:
            InvariantError: when a pole is tilted too far to fit the region that is redrawn.
        """
        middles = states[:, 0] * _PX_PER_METRE + _WIDTH_PX / 2.0
        anchors = np.trunc(middles).astype(np.int64)
        corners = _corners(states, middles, anchors)
        if np.abs(corners[:, :, 0]).max(initial=0) >= _REACH:
            raise InvariantError(f"CartPole's pole is tilted by {np.abs(states[:, 2]).max()} rad")
        out = np.empty((len(states), self._size_px, self._size_px), dtype=np.uint8)
        out[:] = self._background
        for frame, shape, anchor in zip(out, corners, anchors.tolist(), strict=True):
            self._paint(frame, shape, anchor)
        return out

    def _paint(self, frame: Array, shape: Array, anchor: int) -> None:
        place = anchor + _REACH
        if not 0 <= place < len(self._across):
            return  # the whole cart is off the screen
        rows, difference = self._shape(shape)
        patch = difference @ self._across[place]
        patch += self._empty_column[rows]
        first = int(self._first_columns[place])
        start, stop = max(first, 0), min(first + patch.shape[1], self._size_px)
        np.rint(patch, out=patch)
        frame[rows, start:stop] = patch[:, start - first : stop - first]

    def _shape(self, corners: Array) -> tuple[slice, Array]:
        """Rows of the frame that the shape changes, and by how much, `float32 [rows, 2·reach]`."""
        key = corners.tobytes()
        found = self._shapes.get(key)
        if found is None:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            raster = _gray_raster(corners[:2].tolist(), corners[2:].tolist(), (0, int(_AXLE_Y)))
            difference = (self._down @ raster - self._empty_column).astype(np.float32)
            changed = np.flatnonzero(np.abs(difference).max(axis=1) > 0)
            rows = slice(int(changed[0]), int(changed[-1]) + 1)
            found = self._shapes[key] = (rows, np.ascontiguousarray(difference[rows]))
        return found


def _corners(states: Array, middles: Array, anchors: Array) -> Array:
    """int16 [E, 6, 2]: the cart's left and right, then the pole's corners, relative to the anchor.

    Truncation is of absolute coordinates, as in pygame, which matters left of the screen.
    """
    tilts = np.where(np.abs(states[:, 2]) < _SNAP_RAD, 0.0, states[:, 2])
    sin, cos = np.sin(-tilts)[:, None], np.cos(-tilts)[:, None]
    along, up = _POLE_CORNERS[:, 0], _POLE_CORNERS[:, 1]
    corners = np.empty((len(states), 6, 2))
    corners[:, 0, 0] = middles - _CART_HALF_WIDTH
    corners[:, 1, 0] = middles + _CART_HALF_WIDTH
    corners[:, :2, 1] = 0.0
    corners[:, 2:, 0] = cos * along - sin * up + middles[:, None]
    corners[:, 2:, 1] = sin * along + cos * up + _AXLE_Y
    np.trunc(corners, out=corners)
    corners[:, :, 0] -= anchors[:, None]
    return corners.astype(np.int16)


def _column_weights(size_px: int) -> tuple[Array, Array]:
    """For each anchor from −reach on: the first column it may change, and its area weights.

    int64 [N], and float32 [N, 2·reach, columns], zero for what lies off the screen.
    """
    weights = area_weights(_WIDTH_PX, size_px).T  # [600, S]
    anchors = np.arange(-_REACH, _WIDTH_PX + _REACH)
    first = (anchors - _REACH) * size_px // _WIDTH_PX
    columns = -(-2 * _REACH * size_px // _WIDTH_PX) + 1
    across = np.zeros((len(anchors), 2 * _REACH, columns), dtype=np.float32)
    padded = np.zeros((_WIDTH_PX + 4 * _REACH, size_px + 2 * columns), dtype=np.float32)
    padded[2 * _REACH : 2 * _REACH + _WIDTH_PX, columns : columns + size_px] = weights
    for index, (anchor, column) in enumerate(zip(anchors.tolist(), first.tolist(), strict=True)):
        left = anchor + _REACH
        across[index] = padded[left : left + 2 * _REACH, columns + column : 2 * columns + column]
    return first, across


def _gray_raster(cart_x: list[Any], pole: list[Any], axle: tuple[int, int] | None) -> Array:
    """float64 [400, 2·reach]: gray levels of the screen, as Gymnasium would draw this shape."""
    pygame, gfxdraw = _pygame()
    surface = pygame.Surface((2 * _REACH, _HEIGHT_PX))
    surface.fill(_WHITE)
    if axle is not None:
        (left, _), (right, _) = cart_x
        bottom, top = _CART_Y - int(_CART_HALF_HEIGHT), _CART_Y + int(_CART_HALF_HEIGHT)
        cart = [(left, bottom), (left, top), (right, top), (right, bottom)]
        for polygon, colour in ((cart, _BLACK), (pole, _WOOD)):
            placed = [(x + _REACH, y) for x, y in polygon]
            gfxdraw.aapolygon(surface, placed, colour)
            gfxdraw.filled_polygon(surface, placed, colour)
        gfxdraw.aacircle(surface, axle[0] + _REACH, axle[1], _AXLE_RADIUS, _BLUE)
        gfxdraw.filled_circle(surface, axle[0] + _REACH, axle[1], _AXLE_RADIUS, _BLUE)
    gfxdraw.hline(surface, 0, 2 * _REACH, _CART_Y, _BLACK)
    upright = pygame.transform.flip(surface, False, True)
    rgb = np.transpose(np.array(pygame.surfarray.pixels3d(upright)), axes=(1, 0, 2))
    return gray(rgb).astype(np.float64)


@cache
def _pygame() -> tuple[Any, Any]:
    """Pygame and its drawing functions; its greeting is not wanted."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame
    from pygame import gfxdraw

    return pygame, gfxdraw


def _rounded(values: Array) -> Array:
    return np.rint(values).astype(np.uint8)
