"""Whatever bytes arrive: one error type, and memory that stays bounded."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from qfleet.common import messages, sample_message, wire
from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.errors import WireFormatError
from qfleet.common.types import (
    Capture,
    ChunkId,
    EnvironmentSpec,
    EpisodeSummary,
    ParamsSnapshot,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
)

SPEC = EnvironmentSpec("E", (3,), "<f4", 2, None, None)
MUTATIONS_PER_KIND = 1_700
"""Six kinds: more than 10,000 in a run of the tests."""


def columns(rows: int) -> dict[str, np.ndarray]:
    return {
        "observation": np.ones((rows, 3), "<f4"),
        "action": np.zeros(rows, "<i4"),
        "n_step_return": np.ones(rows, "<f4"),
        "bootstrap_discount": np.ones(rows, "<f4"),
        "next_observation": np.ones((rows, 3), "<f4"),
    }


def chunk() -> bytes:
    episode = EpisodeSummary(0, 1, 2.0, 3, 0.1, True)
    return messages.encode_chunk(
        TransitionChunk(ChunkId("run", 0, 1, 2), columns(4), np.ones(4), 3, 4, (episode,))
    )


def sample() -> bytes:
    stats = ReplayStats(*range(len(ReplayStats._fields)))
    return sample_message.encode_shard_sample(
        ShardSample(0, columns(4), np.arange(4), np.ones(4), stats, 0.5)
    )


def snapshot() -> bytes:
    arrays = {"a.weight": np.ones((3, 2), "<f4"), "a.n": np.array(3)}
    return messages.encode_snapshot(ParamsSnapshot(1, 2, 3, True, arrays))


def capture() -> bytes:
    meta = {"rng": np.random.default_rng(1).bit_generator.state, "log": [[1, "int:5"], None]}
    return b"".join(encode_capture(Capture(meta, {"a": np.arange(9.0), "b": np.ones((2, 2))}), 16))


KINDS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "chunk": (chunk(), lambda data: messages.decode_chunk(data, SPEC)),
    "sample": (sample(), sample_message.decode_shard_sample),
    "priorities": (
        messages.encode_priority_update(PriorityUpdate(np.arange(3), np.ones(3))),
        messages.decode_priority_update,
    ),
    "snapshot": (snapshot(), messages.decode_snapshot),
    "parts": (wire.encode_parts({"a": b"abc", "b": b""}), wire.decode_parts),
    "capture": (capture(), decode_capture),
}
ODD_VALUES: list[Any] = [
    *(None, True, -1, 2**63, -(2**63), 1.5, float("nan"), float("inf"), "", "int:", "int:7"),
    *("str:x", b"", b"bytes", [], {}, [[]], {"a": 1}, {b"a": 1, "b": 2}, [None] * 9),
    *("x" * 300, [2**40], [2**62, 2**62], [0, 2**63 - 1], "|O", "<f16", "<f4"),
]


def sealed(head: bytes, payload: bytes) -> bytes:
    head += b"\0" * (-len(head) % 8)
    checksum = zlib.crc32(payload, zlib.crc32(head))
    header = wire.HEADER.pack(b"QFLT", 1, 0, len(head), len(payload), checksum, 0)
    return header + head + payload


def mutated_head(message: bytes, rng: np.random.Generator) -> bytes:
    """One value or key somewhere in the head replaced by an odd one; lengths and sum are right."""
    head_bytes = int(wire.HEADER.unpack_from(message)[3])
    head = msgpack.Unpacker(strict_map_key=False)
    head.feed(message[32 : 32 + head_bytes])
    tree = head.unpack()
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = places[int(rng.integers(len(places)))]
    odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    action = int(rng.integers(4))
    if action == 0 and isinstance(node, dict):
        node[odd if isinstance(odd, str | bytes | int | float) else "more"] = node.pop(key)
    elif action == 1:
        node.pop(key)
    elif action == 2:
        for _ in range(int(rng.integers(1, 1200))):
            odd = [odd]
        node[key] = odd
    else:
        node[key] = odd
    try:
        packed = msgpack.packb(tree)
    except (ValueError, OverflowError):  # deeper than its packer goes
        packed = b"\x91" * 2000
    return sealed(packed, message[32 + head_bytes :])


def mutated_bytes(message: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, removed or added; every other time with a right checksum."""
    data = bytearray(message)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data)))
        action = int(rng.integers(4))
        if action == 0:
            data[at] = int(rng.integers(256))
        elif action == 1:
            del data[at : at + int(rng.integers(1, 9))]
        elif action == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            data[at : at + 5] = [b"\xdd\xff\xff\xff\xff", b"\xdf\x00\xff\xff\xff"][at % 2]
    if rng.integers(2) and len(data) > 40:
        head_bytes = int(wire.HEADER.unpack_from(message)[3])
        return sealed(bytes(data[32 : 32 + head_bytes]), bytes(data[32 + head_bytes :]))
    return bytes(data)


def decode_mutated(kind: str, mutations: int) -> tuple[int, int]:
    """(messages refused with the one error type, bytes of memory at the peak) of so many."""
    original, decode = KINDS[kind]
    decode(original)
    first = bytes(original[: wire.message_bytes(memoryview(original))])
    rng = np.random.default_rng([20_241_127, sorted(KINDS).index(kind)])
    refused = 0
    tracemalloc.start()
    for index in range(mutations):
        mutate = mutated_head if index % 2 else mutated_bytes
        try:
            decode(mutate(first, rng) + original[len(first) :])
        except WireFormatError:
            refused += 1
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return refused, peak_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_messages_raise_one_error_type_and_memory_stays_bounded(kind: str) -> None:
    refused, peak_bytes = decode_mutated(kind, MUTATIONS_PER_KIND)

    assert refused > MUTATIONS_PER_KIND // 2
    assert peak_bytes < 16 * 2**20
