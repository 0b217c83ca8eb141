"""From a rendered picture to the frame that a network sees: gray first, then shrunk by area.

Called by the environment's pixel wrapper for what it renders itself, and by the fast renderers,
which reproduce it. Differs: the course divides by 255 before it turns gray, in float32; here
frames stay bytes, which moves a pixel by less than one gray level.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.types import Array


def gray(rgb: Array) -> Array:
    """uint8 [H, W] luminance of `rgb` uint8 [H, W, 3] (ITU-R 601, as OpenCV rounds it)."""
    import cv2

    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY))


def shrunk(picture: Array, size_px: int) -> Array:
    """uint8 [S, S]: gray `picture` [H, W] averaged over the area of each new pixel.

    Raises:
        ValueError: when it is smaller than that.
    """
    import cv2

    if min(picture.shape) < size_px:
        height, width = picture.shape
        raise ValueError(
            f"pictures of {height} × {width} pixels cannot be enlarged to {size_px} "
            "(env.frame_size)"
        )
    return np.asarray(cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_AREA))


def gray_frame(rgb: Array, size_px: int) -> Array:
    """uint8 [S, S] of a picture uint8 [H, W, 3]."""
    return shrunk(gray(rgb), size_px)


def area_weights(source_px: int, target_px: int) -> Array:
    """float64 [target, source]: row i averages the part of the source that target pixel i covers.

    Raises:
        ValueError: when the target is larger than the source.
    """
    if not 1 <= target_px <= source_px:
        raise ValueError(f"frames of {source_px} pixels shrink to 1…{source_px}, got {target_px}")
    scale = source_px / target_px
    edges = np.arange(target_px + 1) * scale
    pixels = np.arange(source_px)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(covered.clip(0.0, 1.0) / scale)
