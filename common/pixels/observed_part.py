"""What of a frame is observed: the rows that are kept, inverted where that is asked for.

Called wherever frames are made, so that nothing above knows more than a frame's shape.
"""

from __future__ import annotations

import numpy as np

from qfleet.common.config import EnvConfig
from qfleet.common.types import Array


def observed_part(config: EnvConfig, frames: Array) -> Array:
    """uint8 [..., H, S], contiguous, of whole frames uint8 [..., S, S]."""
    kept = frames[..., config.kept_rows, :]
    return np.invert(kept) if config.frame_inverted else np.ascontiguousarray(kept)
