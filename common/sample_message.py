"""A shard's draws as a wire message.

Called by the shard's shell and by the learner, which takes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qfleet.common import wire
from qfleet.common.errors import WireFormatError
from qfleet.common.messages import check_meta, take_vector
from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.pixels.stored_columns import PLACE_DTYPE, STACKS, frame_shape, held_columns
from qfleet.common.types import (
    Columns,
    EnvironmentSpec,
    ReplayStats,
    ShardSample,
    transition_columns,
)

_SAMPLE_META: dict[str, type] = {
    "shard": int,
    "stats": list,
    "mean_age_s": float,
    "held_s": float,
    "n_places": int,
    "reader": str,
    "answer": int,
}
NEW_PLACES = "new_places"
NEW_FRAMES = "new_frames"
NEW_SINCE = "new_since"
_KEY_AND_PROBABILITY_BYTES = 16
_NEW_PLACE_BYTES = 16
"""A new frame's place, and the number of the answer that first carried it."""
MAX_SAMPLE_BYTES = 2**31
_SAMPLE_ENVELOPE_BYTES = 1024
"""More than a sample's header, head and the padding of its columns take."""


def encode_shard_sample(sample: ShardSample) -> bytes:
    """A shard's draws as bytes."""
    news = sample.new_frames
    meta = {
        "shard": sample.shard,
        "stats": list(sample.stats),
        "mean_age_s": float(sample.mean_age_s),
        "held_s": float(sample.held_s),
        "n_places": 0 if news is None else news.n_places,
        "reader": "" if news is None else news.reader,
        "answer": 0 if news is None else news.answer,
    }
    columns = {
        **sample.columns,
        "item_keys": sample.item_keys,
        "probabilities": sample.probabilities,
    }
    if news is not None:
        columns[NEW_PLACES], columns[NEW_FRAMES] = news.places, news.frames
        columns[NEW_SINCE] = news.since
    return wire.encode("sample", meta, columns)


def shard_sample_bytes(spec: EnvironmentSpec, n_draws: int, *, by_place: bool = False) -> int:
    """At least as many bytes as `encode_shard_sample` makes of so many draws, and hardly more.

    `by_place`: when every draw names frames that no other does and that the reader does not have.
    """
    columns = held_columns(spec) if by_place else transition_columns(spec)
    row_bytes = sum(np.dtype(c.dtype).itemsize * math.prod(c.shape) for c in columns)
    if by_place:
        named = sum(math.prod(c.shape) for c in columns if c.name in STACKS)
        row_bytes += named * (_NEW_PLACE_BYTES + math.prod(frame_shape(spec)))
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
    new_frames = _take_new_frames(columns, meta) if meta["n_places"] else None
    if any(a.ndim == 0 or len(a) != len(keys) for a in (*columns.values(), probabilities)):
        raise WireFormatError(f"a sample's columns must all have {len(keys)} rows")
    is_number = [type(value) in (int, float) for value in meta["stats"]]
    if len(is_number) != len(ReplayStats._fields) or not all(is_number):
        raise WireFormatError(f"a sample's stats must be {len(ReplayStats._fields)} numbers")
    stats = ReplayStats(*meta["stats"])
    times = meta["mean_age_s"], meta["held_s"]
    return ShardSample(meta["shard"], columns, keys, probabilities, stats, *times, new_frames)


def _take_new_frames(columns: Columns, meta: dict[str, Any]) -> NewFrames:
    n_places = meta["n_places"]
    places, since = (take_vector("sample", columns, n, "<i8") for n in (NEW_PLACES, NEW_SINCE))
    frames = columns.pop(NEW_FRAMES, None)
    if frames is None or frames.dtype != np.uint8 or frames.ndim != 3 or len(frames) != len(places):
        raise WireFormatError(f"a sample must hold {NEW_FRAMES} as uint8 [{len(places)}, H, W]")
    named = [columns.get(name, np.empty(0)) for name in STACKS]
    if any(a.dtype != np.dtype(PLACE_DTYPE) or a.ndim != 2 for a in named):
        raise WireFormatError(f"a sample's stacks must be places, {PLACE_DTYPE} [n, S]")
    if any(a.size and not 0 <= a.min() <= a.max() < n_places for a in (places, *named)):
        raise WireFormatError(f"a sample's places must be below {n_places}")
    if len(since) != len(places):
        raise WireFormatError(f"a sample must hold {NEW_SINCE} as int64 [{len(places)}]")
    if since.size and not 1 <= since.min() <= since.max() <= meta["answer"]:
        raise WireFormatError(f"a sample's {NEW_SINCE} must be 1 to its answer {meta['answer']}")
    return NewFrames(meta["reader"], meta["answer"], n_places, places, frames, since)
