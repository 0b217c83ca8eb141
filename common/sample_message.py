"""A shard's draws as a wire message.

Called by the shard's shell and by the learner, which takes them.
"""

from __future__ import annotations

import math

import numpy as np

from qfleet.common import wire
from qfleet.common.errors import WireFormatError
from qfleet.common.messages import check_meta, take_vector
from qfleet.common.types import EnvironmentSpec, ReplayStats, ShardSample, transition_columns

_SAMPLE_META: dict[str, type] = {
    "shard": int,
    "stats": list,
    "mean_age_s": float,
    "held_s": float,
}
_KEY_AND_PROBABILITY_BYTES = 16
MAX_SAMPLE_BYTES = 2**31
_SAMPLE_ENVELOPE_BYTES = 1024
"""More than a sample's header, head and the padding of its columns take."""


def encode_shard_sample(sample: ShardSample) -> bytes:
    """A shard's draws as bytes."""
    meta = {
        "shard": sample.shard,
        "stats": list(sample.stats),
        "mean_age_s": float(sample.mean_age_s),
        "held_s": float(sample.held_s),
    }
    columns = {
        **sample.columns,
        "item_keys": sample.item_keys,
        "probabilities": sample.probabilities,
    }
    return wire.encode("sample", meta, columns)


def shard_sample_bytes(spec: EnvironmentSpec, n_draws: int) -> int:
    """At least as many bytes as `encode_shard_sample` makes of so many draws, and hardly more."""
    columns = transition_columns(spec)
    row_bytes = sum(np.dtype(c.dtype).itemsize * math.prod(c.shape) for c in columns)
    return n_draws * (row_bytes + _KEY_AND_PROBABILITY_BYTES) + _SAMPLE_ENVELOPE_BYTES


def decode_shard_sample(data: bytes | memoryview) -> ShardSample:
    """The inverse of `encode_shard_sample`; arrays are read-only views into `data`.

    Raises:
        WireFormatError: when a field is missing or its rows do not agree with the others'.
    """
    meta, columns = wire.decode(data, "sample", max_bytes=MAX_SAMPLE_BYTES)
    check_meta("sample", meta, _SAMPLE_META)
    keys = take_vector("sample", columns, "item_keys", "<i8")
    probabilities = take_vector("sample", columns, "probabilities", "<f8")
    if any(a.ndim == 0 or len(a) != len(keys) for a in (*columns.values(), probabilities)):
        raise WireFormatError(f"a sample's columns must all have {len(keys)} rows")
    is_number = [type(value) in (int, float) for value in meta["stats"]]
    if len(is_number) != len(ReplayStats._fields) or not all(is_number):
        raise WireFormatError(f"a sample's stats must be {len(ReplayStats._fields)} numbers")
    stats = ReplayStats(*meta["stats"])
    times = meta["mean_age_s"], meta["held_s"]
    return ShardSample(meta["shard"], columns, keys, probabilities, stats, *times)
