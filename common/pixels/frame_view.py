"""How a vector's observations are made of frames; used by the vector environment adapter."""

from __future__ import annotations

from typing import NamedTuple

from qfleet.common.config import EnvConfig
from qfleet.common.pixels.fast_renderers import StateRenderer, fast_renderer
from qfleet.common.pixels.frame_stack import FrameStack


class FrameView(NamedTuple):
    """How an adapter makes observations of frames."""

    stack: FrameStack
    renderer: StateRenderer | None
    """Draws single frames from the vector's states; None where the environments show frames."""

    @classmethod
    def of(cls, config: EnvConfig) -> FrameView | None:
        """None where observations are states or planes."""
        if config.observation != "pixels":
            return None
        renderer = fast_renderer(config) if config.renderer == "fast" else None
        return cls(FrameStack(config.frame_stack), renderer)
