"""Chunks, samples and snapshots as wire messages: the typed layer over `wire.py`.

Called by the Ray shells and by the checkpoint. Decoding checks names, dtypes, shapes and values
against the environment's spec, so nothing malformed reaches a core.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qfleet.common import wire
from qfleet.common.errors import WireFormatError
from qfleet.common.types import (
    ACTION,
    Array,
    ChunkId,
    Columns,
    EnvironmentSpec,
    EpisodeSummary,
    ParamsSnapshot,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
    transition_columns,
)

PRIORITIES = "priorities"
EPISODES = "episodes"
_EPISODE_FIELDS = 6
_CHUNK_META = {
    "run_id": str,
    "actor_slot": int,
    "incarnation": int,
    "seq": int,
    "params_version": int,
    "env_steps": int,
}


def encode_chunk(chunk: TransitionChunk) -> bytes:
    """A chunk as bytes."""
    meta = {
        **chunk.chunk_id._asdict(),
        "params_version": chunk.params_version,
        "env_steps": chunk.env_steps,
    }
    columns = dict(chunk.columns)
    if chunk.priorities is not None:
        columns[PRIORITIES] = chunk.priorities
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
    _check_meta(meta)
    episodes = columns.pop(EPISODES, None)
    priorities = columns.pop(PRIORITIES, None)
    if episodes is None or episodes.ndim != 2 or episodes.shape[1] != _EPISODE_FIELDS:
        raise WireFormatError("a chunk must hold its episodes as [n, 6]")
    rows = _check_transitions(columns, spec)
    if priorities is not None:
        _check_priorities(priorities, rows)
    return TransitionChunk(
        ChunkId(meta["run_id"], meta["actor_slot"], meta["incarnation"], meta["seq"]),
        columns,
        priorities,
        meta["params_version"],
        meta["env_steps"],
        tuple(
            EpisodeSummary(int(e[0]), int(e[1]), float(e[2]), int(e[3]), float(e[4]), bool(e[5]))
            for e in episodes
        ),
    )


def _check_meta(meta: dict[str, Any]) -> None:
    if set(meta) != set(_CHUNK_META):
        raise WireFormatError(f"a chunk's fields must be {sorted(_CHUNK_META)}")
    for key, wanted in _CHUNK_META.items():
        if type(meta[key]) is not wanted or (wanted is int and meta[key] < 0):
            raise WireFormatError(f"a chunk's {key} must be a {wanted.__name__} of at least 0")


def _check_transitions(columns: Columns, spec: EnvironmentSpec) -> int:
    specs = transition_columns(spec)
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
    if rows and not (0 <= int(actions.min()) and int(actions.max()) < spec.n_actions):
        raise WireFormatError(f"an action is outside 0…{spec.n_actions - 1}")
    return rows


def _check_priorities(priorities: Array, rows: int) -> None:
    if priorities.shape != (rows,) or priorities.dtype != np.dtype("<f8"):
        raise WireFormatError(f"priorities must be float64 [{rows}]")
    if not (np.isfinite(priorities).all() and (priorities >= 0).all()):
        raise WireFormatError("priorities must be finite and not negative")


def encode_shard_sample(sample: ShardSample) -> bytes:
    """A shard's draws as bytes."""
    meta = {"shard": sample.shard, "stats": list(sample.stats), "mean_age_s": sample.mean_age_s}
    columns = {
        **sample.columns,
        "item_keys": sample.item_keys,
        "probabilities": sample.probabilities,
    }
    return wire.encode("sample", meta, columns)


def decode_shard_sample(data: bytes | memoryview) -> ShardSample:
    """The inverse of `encode_shard_sample`; arrays are read-only views into `data`."""
    meta, columns = wire.decode(data, "sample", max_bytes=2**31)
    keys = columns.pop("item_keys")
    probabilities = columns.pop("probabilities")
    stats = ReplayStats(*meta["stats"])
    return ShardSample(meta["shard"], columns, keys, probabilities, stats, meta["mean_age_s"])


def encode_priority_update(update: PriorityUpdate) -> bytes:
    """A priority update as bytes."""
    return wire.encode(
        "priorities",
        {},
        {"item_keys": update.item_keys, "td_errors_abs": update.td_errors_abs},
    )


def decode_priority_update(data: bytes | memoryview) -> PriorityUpdate:
    """The inverse of `encode_priority_update`."""
    _, columns = wire.decode(data, "priorities")
    return PriorityUpdate(columns["item_keys"], columns["td_errors_abs"])


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
    """The inverse of `encode_snapshot`; arrays are read-only views into `data`."""
    meta, columns = wire.decode(data, "snapshot", max_bytes=2**32)
    return ParamsSnapshot(
        meta["version"],
        meta["learner_step"],
        meta["env_steps"],
        meta["is_target_sync"],
        columns,
    )
