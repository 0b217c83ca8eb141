"""What docs/scaling.md takes for granted because it was not measured: change a figure, run it anew.

Used by `scaling.py` and `scaling_page.py`; the page lists all of it.
"""

from __future__ import annotations

SIZES = (1, 16, 256, 1000)
"""Actors."""
STORED_TRANSITIONS = 1_000_000

# Hosts and prices

CORES_PER_HOST = 16
NETWORK_BYTES_PER_S = 1.25e9
"""10 Gbit/s at every host."""
USD_PER_CORE_HOUR = 0.05
USD_PER_GPU_HOUR = 3.00
EUR_PER_USD = 0.90
POLL_BYTES = 1_000
"""A question of the driver with its answer."""

# A slow environment with observations like CartPole's

SLOW_ENV_STEPS_PER_S = 1_000.0
"""Of one actor with a core of its own."""
SLOW_SAMPLES_PER_INSERT = 1.0

# 84×84 frames: an Atari fleet with the Nature network and one GPU

FRAMES_ENV_STEPS_PER_S = 1_000.0
"""Of one actor; EnvPool's published 79 to 139 µs a frame, four frames a step, without a network,
would be 1,800 to 3,200."""
FRAME_BYTES = 84 * 84
STACK = 4
SCALAR_BYTES, TIME_BYTES, KEY_BYTES, PROBABILITY_BYTES = 12, 8, 8, 8
"""Action, return and discount; time of insertion; what a draw carries besides."""
FRAMES_ROW_BYTES = FRAME_BYTES + SCALAR_BYTES
"""A frame travels and is stored once."""
FRAMES_DRAW_BYTES = (STACK + 1) * FRAME_BYTES + SCALAR_BYTES + KEY_BYTES + PROBABILITY_BYTES
"""The frames that hold both stacks."""
FRAMES_CHUNK = 128
FRAMES_SNAPSHOT_BYTES = 6_750_000
"""The Nature network's 1.69 M parameters as float32."""
FRAMES_BATCH = 512
FRAMES_UPDATES_PER_CALL = 10
FRAMES_UPDATES_PER_S = 200.0
FRAMES_PUBLISH_PERIOD = 400
FRAMES_SAMPLES_PER_INSERT = 0.8
"""Ape-X: 19 updates/s of 512 for 12,500 transitions/s (Horgan et al. 2018)."""
BYTES_PER_CORE_S = 1e9
"""What a core checks and copies of large messages, each side."""
