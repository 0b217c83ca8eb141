"""Chunks, priorities and snapshots as wire messages: the typed layer over `wire.py`.

Called by the Ray shells and by the checkpoint. Decoding checks names, dtypes, shapes and values
against the environment's spec, so nothing malformed reaches a core.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qfleet.common import wire
from qfleet.common.errors import WireFormatError
from qfleet.common.pixels.frame_run import FrameRun
from qfleet.common.pixels.stored_columns import frame_shape, stored_columns
from qfleet.common.types import (
    ACTION,
    Array,
    ChunkId,
    Columns,
    EnvironmentSpec,
    EpisodeSummary,
    ParamsSnapshot,
    PriorityUpdate,
    TransitionChunk,
)

PRIORITIES = "priorities"
EPISODES = "episodes"
FRAMES = "frames"
FRAME_RUN = "frame_run"
"""int64 [2]: `first` and `keep_from` of a `FrameRun`."""
_EPISODE_FIELDS = 6
_CHUNK_META: dict[str, type] = {
    "run_id": str,
    "actor_slot": int,
    "incarnation": int,
    "seq": int,
    "params_version": int,
    "env_steps": int,
    "target_version": int,
    "first_transition": int,
}
_CHUNK_ENVELOPE_BYTES = 1024
_SNAPSHOT_META: dict[str, type] = {
    "version": int,
    "learner_step": int,
    "env_steps": int,
    "is_target_sync": bool,
}


def encode_chunk(chunk: TransitionChunk) -> bytes:
    """A chunk as bytes."""
    meta = {
        **chunk.chunk_id._asdict(),
        "params_version": chunk.params_version,
        "env_steps": chunk.env_steps,
        "target_version": chunk.target_version,
        "first_transition": chunk.first_transition,
    }
    columns = dict(chunk.columns)
    if chunk.priorities is not None:
        columns[PRIORITIES] = chunk.priorities
    if chunk.frames is not None:
        columns[FRAMES] = chunk.frames.frames
        columns[FRAME_RUN] = np.array([chunk.frames.first, chunk.frames.keep_from])
    columns[EPISODES] = np.array(
        [
            (e.actor_slot, e.sub_env, e.episode_return, e.length_env_steps, e.epsilon, e.terminated)
            for e in chunk.episodes
        ],
        dtype=np.float64,
    ).reshape(len(chunk.episodes), _EPISODE_FIELDS)
    return wire.encode("chunk", meta, columns)


def decode_chunk(data: bytes | memoryview, spec: EnvironmentSpec) -> TransitionChunk:
    """A chunk, checked against the environment; columns are read-only views into `data`.

    Raises:
        WireFormatError: when a field, dtype, shape or value is not what `spec` allows.
    """
    meta, columns = wire.decode(data, "chunk")
    check_meta("chunk", meta, _CHUNK_META)
    episodes = columns.pop(EPISODES, None)
    priorities = columns.pop(PRIORITIES, None)
    frames = None if spec.frame_stack is None else _take_frames(columns, spec)
    summaries = _read_episodes(episodes)
    rows = _check_transitions(columns, spec)
    if priorities is not None:
        _check_priorities(priorities, rows)
    return TransitionChunk(
        ChunkId(meta["run_id"], meta["actor_slot"], meta["incarnation"], meta["seq"]),
        columns,
        priorities,
        meta["params_version"],
        meta["env_steps"],
        summaries,
        frames,
        meta["target_version"],
        meta["first_transition"],
    )


def check_meta(kind: str, meta: dict[str, Any], fields: dict[str, type]) -> None:
    """Raise `WireFormatError` unless a message's fields are exactly these."""
    if set(meta) != set(fields):
        got = sorted(map(str, meta))
        raise WireFormatError(f"a {kind}'s fields must be {sorted(fields)}, got {got}")
    for key, wanted in fields.items():
        if type(meta[key]) is not wanted:
            raise WireFormatError(f"a {kind}'s {key} must be a {wanted.__name__}")
        if wanted is int and meta[key] < 0:
            raise WireFormatError(f"a {kind}'s {key} must be at least 0, got {meta[key]}")


def _read_episodes(episodes: Array | None) -> tuple[EpisodeSummary, ...]:
    if episodes is None or episodes.ndim != 2 or episodes.shape[1] != _EPISODE_FIELDS:
        raise WireFormatError(f"a chunk must hold its episodes as [n, {_EPISODE_FIELDS}]")
    if episodes.dtype != np.dtype("<f8") or not np.isfinite(episodes).all():
        raise WireFormatError("a chunk's episodes must be finite float64")
    counts = episodes[:, [0, 1, 3, 5]]
    if not ((counts >= 0).all() and (counts == np.floor(counts)).all()):
        raise WireFormatError("an episode's slot, sub-environment, length and flag must be counts")
    return tuple(
        EpisodeSummary(int(e[0]), int(e[1]), float(e[2]), int(e[3]), float(e[4]), bool(e[5]))
        for e in episodes
    )


def take_vector(kind: str, columns: Columns, name: str, dtype: str) -> Array:
    """Take the column out of `columns`; `WireFormatError` unless it is there as `dtype` [n]."""
    array = columns.pop(name, None)
    if array is None or array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise WireFormatError(f"a {kind} must hold {name} as {dtype} [n]")
    return array


def _take_frames(columns: Columns, spec: EnvironmentSpec) -> FrameRun:
    frames = columns.pop(FRAMES, None)
    if frames is None or frames.dtype != np.uint8 or frames.shape[1:] != frame_shape(spec):
        raise WireFormatError(f"a chunk must hold frames as uint8 {['F', *frame_shape(spec)]}")
    numbers = take_vector("chunk", columns, FRAME_RUN, "<i8")
    if len(numbers) != 2 or not 0 <= numbers[1] <= numbers[0] + len(frames) or numbers[0] < 0:
        raise WireFormatError(f"a chunk's frame numbers {numbers.tolist()} are not [first, kept]")
    return FrameRun(int(numbers[0]), int(numbers[1]), frames)


def _check_transitions(columns: Columns, spec: EnvironmentSpec) -> int:
    specs = stored_columns(spec)
    if list(columns) != [column.name for column in specs]:
        raise WireFormatError(f"columns {list(columns)} are not a transition's")
    rows = columns[ACTION].shape[0] if columns[ACTION].ndim else -1
    for column in specs:
        array = columns[column.name]
        if array.dtype != np.dtype(column.dtype) or array.shape != (rows, *column.shape):
            raise WireFormatError(
                f"column {column.name} is {array.dtype.str}{list(array.shape)}, "
                f"must be {column.dtype}{[rows, *column.shape]}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WireFormatError(f"column {column.name} holds a value that is not finite")
    actions = columns[ACTION]
    if rows and (int(actions.min()) < 0 or int(actions.max()) >= spec.n_actions):
        raise WireFormatError(f"an action is outside 0…{spec.n_actions - 1}")
    return rows


def _check_priorities(priorities: Array, rows: int) -> None:
    if priorities.shape != (rows,) or priorities.dtype != np.dtype("<f8"):
        raise WireFormatError(f"priorities must be float64 [{rows}]")
    if not (np.isfinite(priorities).all() and (priorities >= 0).all()):
        raise WireFormatError("priorities must be finite and not negative")


def chunk_bytes(spec: EnvironmentSpec, rows: int) -> int:
    """At least as many bytes as `encode_chunk` makes of so many transitions, priorities included.

    Counted with an episode for each row, and of stacked frames two: those of one-step episodes.
    """
    row_bytes = sum(np.dtype(c.dtype).itemsize * math.prod(c.shape) for c in stored_columns(spec))
    row_bytes += (1 + _EPISODE_FIELDS) * np.dtype(np.float64).itemsize
    if spec.frame_stack is not None:
        row_bytes += 2 * math.prod(frame_shape(spec))
    return rows * row_bytes + _CHUNK_ENVELOPE_BYTES


def encode_priority_update(update: PriorityUpdate) -> bytes:
    """A priority update as bytes."""
    return wire.encode(
        "priorities",
        {},
        {"item_keys": update.item_keys, "td_errors_abs": update.td_errors_abs},
    )


def decode_priority_update(data: bytes | memoryview) -> PriorityUpdate:
    """The inverse of `encode_priority_update`.

    Raises:
        WireFormatError: when a column is missing or foreign, or a TD error is not a magnitude.
    """
    meta, columns = wire.decode(data, "priorities")
    check_meta("priority update", meta, {})
    keys = take_vector("priority update", columns, "item_keys", "<i8")
    errors = take_vector("priority update", columns, "td_errors_abs", "<f8")
    if columns:
        raise WireFormatError(f"a priority update must not hold {sorted(columns)}")
    _check_priorities(errors, len(keys))
    return PriorityUpdate(keys, errors)


def encode_snapshot(snapshot: ParamsSnapshot) -> bytes:
    """A parameter snapshot as bytes."""
    meta = {
        "version": snapshot.version,
        "learner_step": snapshot.learner_step,
        "env_steps": snapshot.env_steps,
        "is_target_sync": snapshot.is_target_sync,
    }
    return wire.encode("snapshot", meta, snapshot.arrays)


def decode_snapshot(data: bytes | memoryview) -> ParamsSnapshot:
    """The inverse of `encode_snapshot`; arrays are read-only views into `data`.

    Raises:
        WireFormatError: when a field is missing, foreign or of the wrong type.
    """
    meta, columns = wire.decode(data, "snapshot", max_bytes=2**32)
    check_meta("snapshot", meta, _SNAPSHOT_META)
    return ParamsSnapshot(
        meta["version"],
        meta["learner_step"],
        meta["env_steps"],
        meta["is_target_sync"],
        columns,
    )
