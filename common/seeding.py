"""One root seed, one independent generator per role and purpose; called wherever a role is built.

A role's stream depends on its name and index alone, so that a second actor or shard does not
change the draws of the first.
"""

from __future__ import annotations

import zlib

import numpy as np


def seed_sequence(root_seed: int, purpose: str, *indices: int) -> np.random.SeedSequence:
    """The seed sequence for `purpose` (for example `"actor.policy"`) and its indices."""
    return np.random.SeedSequence(root_seed, spawn_key=(zlib.crc32(purpose.encode()), *indices))


def generator(root_seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A NumPy PCG64 generator for `purpose` and its indices."""
    return np.random.Generator(np.random.PCG64(seed_sequence(root_seed, purpose, *indices)))


def seed_int(root_seed: int, purpose: str, *indices: int) -> int:
    """A 31-bit seed for libraries that take one integer (Gymnasium, torch)."""
    return int(seed_sequence(root_seed, purpose, *indices).generate_state(1)[0] >> 1)
