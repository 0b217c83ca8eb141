"""Gray before shrinking, by area: golden values that can be checked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from qfleet.common.pixels.gray_frames import area_weights, gray, gray_frame
from qfleet.common.types import Array


def course_preprocess(image: Array) -> Array:
    """The chapter's own function: float32 first, then gray, then shrunk."""
    image = (image / 255.0).astype("float32")
    image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(image, (84, 84), interpolation=cv2.INTER_AREA))


def test_gray_is_luminance() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [202, 152, 101]]], dtype=np.uint8)

    # 0.299 R + 0.587 G + 0.114 B, rounded.
    assert gray(colours).tolist() == [[76, 150, 29, 161]]


def test_gray_frame_averages_gray_levels() -> None:
    red_and_black = np.zeros((2, 2, 3), dtype=np.uint8)
    red_and_black[0, 0, 0] = 255

    assert gray_frame(red_and_black, 1).tolist() == [[19]]  # 76 / 4


def test_gray_frame_turns_gray_before_it_shrinks() -> None:
    """Gray levels 153, 196, 103 and 189 have the mean 160.25; of the mean colour it is 160.7."""
    four = np.array([[[187, 150, 81], [243, 205, 24]], [[236, 8, 246], [164, 231, 36]]], np.uint8)
    mean_colour = cv2.resize(four, (1, 1), interpolation=cv2.INTER_AREA).reshape(1, 1, 3)

    assert gray_frame(four, 1).tolist() == [[160]]
    assert gray(mean_colour).tolist() == [[161]]


def test_gray_frame_is_within_one_level_of_the_course() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (400, 600, 3), dtype=np.uint8)

    difference = gray_frame(image, 84) - 255.0 * course_preprocess(image)

    assert np.abs(difference).max() < 1.0


def test_area_weights_cover_each_pixel_once() -> None:
    weights = area_weights(5, 2)

    np.testing.assert_allclose(weights, [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])


def test_area_weights_refuse_to_enlarge() -> None:
    with pytest.raises(ValueError, match="shrink to 1…400, got 401"):
        area_weights(400, 401)
