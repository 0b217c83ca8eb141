"""How observations of a space become what is stored, and which of their values are impossible.

Called for every observation by `environment_checks.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces

from qfleet.common.types import Array

EXTENTS_OUTSIDE = 100.0
"""How far outside its bounds an observation may lie, in extents of its space.

Many environments, Gymnasium's own among them, overstep theirs a little; a hundred extents are
another unit or a number that ran away.
"""
_LARGEST_SQUARED = 1e18


class FrameForm:
    """Frames uint8 `[H, S]` as they are."""

    def __init__(self, space: spaces.Box) -> None:
        self.space = space

    def flatten(self, observation: Any) -> Array:
        """uint8 [H, S]; the pixel environment made it, so nothing is left to check."""
        return np.asarray(observation)

    def __str__(self) -> str:
        return str(self.space)


class PlaneForm:
    """Grids `[H, W, C]` of bool or uint8 as uint8 planes `[C, H, W]`, the values as they are."""

    def __init__(self, space: spaces.Box) -> None:
        self._raw = space
        height, width, channels = self._shape = space.shape
        self.space = spaces.Box(0, 255, (channels, height, width), dtype=np.uint8)

    @staticmethod
    def takes(space: spaces.Space[Any]) -> bool:
        """Whether observations of `space` are such grids."""
        return isinstance(space, spaces.Box) and (
            len(space.shape) == 3 and space.dtype in (np.bool_, np.uint8)
        )

    def flatten(self, observation: Any) -> Array:
        """uint8 [C, H, W], a fresh array.

        Raises:
            ValueError: when it is of another shape or kind.
        """
        grid = np.asarray(observation)
        if grid.shape != self._shape or grid.dtype not in (np.bool_, np.uint8):
            raise ValueError(
                f"it is {grid.dtype}{list(grid.shape)}, the space's are bool or uint8 "
                f"{list(self._shape)}"
            )
        return np.array(grid.transpose(2, 0, 1), dtype=np.uint8, order="C")

    def __str__(self) -> str:
        return str(self._raw)


class ObservationForm:
    """How one space's observations become flat float32, and which values are impossible."""

    def __init__(self, space: spaces.Space[Any], flat: spaces.Box) -> None:
        with np.errstate(over="ignore"):  # float64 bounds such as 1.8e308 become infinite
            low, high = flat.low.astype(np.float32), flat.high.astype(np.float32)
        self.space = spaces.Box(low, high, dtype=np.float32)
        """float32 [O]."""
        self._raw = space
        self._convert = _converter(space)
        # In float64, where a bound of 3.4e38 does not become infinite when it is widened.
        low64, high64 = low.astype(np.float64).reshape(-1), high.astype(np.float64).reshape(-1)
        slack = EXTENTS_OUTSIDE * np.maximum(high64 - low64, 1.0)
        slack[~(np.isfinite(low64) & np.isfinite(high64))] = np.inf
        self._lowest, self._highest = low64 - slack, high64 + slack
        nearest = float(np.minimum(-self._lowest, self._highest).min(initial=np.inf))
        # One cheap product says that no value is impossible: with itself where there are bounds,
        # else with zeros, which gives 0 unless a value is not finite. Squares of more overflow.
        is_bounded = nearest < _LARGEST_SQUARED
        self._zeros = None if is_bounded else np.zeros(self.space.shape, np.float32)
        self._safe_product = 0.0
        if is_bounded:
            self._safe_product = nearest**2 if nearest > 0.0 else -1.0

    def flatten(self, observation: Any) -> Array:
        """float32 [O], a fresh array.

        Raises:
            Exception: any kind, when it is not an observation of this space at all.
            ValueError: when its values are impossible, saying which.
        """
        flat = self._convert(observation)
        product = flat.dot(flat if self._zeros is None else self._zeros)
        if not product <= self._safe_product:  # NaN fails the comparison
            self._check_values(flat)
        return flat

    def _check_values(self, flat: Array) -> None:
        wrong = np.flatnonzero(~np.isfinite(flat))
        if wrong.size:
            raise ValueError(f"value {wrong[0]} of the observation is {flat[wrong[0]]}")
        wrong = np.flatnonzero((flat < self._lowest) | (flat > self._highest))
        if wrong.size:
            at = wrong[0]
            raise ValueError(
                f"value {at} of the observation is {flat[at]:g}, but its space allows "
                f"{self.space.low.flat[at]:g} to {self.space.high.flat[at]:g}"
            )

    def __str__(self) -> str:
        return str(self._raw)


def _converter(space: spaces.Space[Any]) -> Callable[[Any], Array]:
    if isinstance(space, spaces.Box):
        return partial(_flat_box, space.shape)
    if isinstance(space, spaces.Discrete):
        return partial(_one_hot, int(space.start), int(space.n))
    return partial(_flat, space, int(spaces.utils.flatdim(space)))


def _flat_box(shape: tuple[int, ...], observation: Any) -> Array:
    # np.array copies: the environment may go on writing to the array that it returned.
    array = np.array(observation, dtype=np.float32)
    if array.shape != shape:
        raise ValueError(f"its shape is {list(array.shape)}, the space's {list(shape)}")
    return array.reshape(-1)


def _one_hot(start: int, n: int, observation: Any) -> Array:
    number = operator.index(observation) - start
    if not 0 <= number < n:
        raise ValueError("it is not in the space")
    flat = np.zeros(n, dtype=np.float32)
    flat[number] = 1.0
    return flat


def _flat(space: spaces.Space[Any], size: int, observation: Any) -> Array:
    flat = np.array(spaces.utils.flatten(space, observation), dtype=np.float32).reshape(-1)
    if flat.size != size:
        raise ValueError(f"it has {flat.size} values, the space {size}")
    return flat
