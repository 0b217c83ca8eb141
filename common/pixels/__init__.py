"""Frames: drawing them fast, making them from an environment's own rendering, stacking them."""
