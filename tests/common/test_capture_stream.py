"""Captured states as streams: round trips, every departure refused, nothing held twice."""

from __future__ import annotations

import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.common import wire
from qfleet.common.capture_stream import (
    ArrayFiller,
    Rows,
    decode_capture,
    decode_head,
    encode_capture,
    encode_head,
    encode_rows,
    messages,
    pieces_of,
    restoring,
)
from qfleet.common.errors import CheckpointError, WireFormatError
from qfleet.common.types import Capture

ARRAYS = {
    "a/b": np.arange(30, dtype=np.float32).reshape(10, 3),
    "scalar": np.array(4, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False, True]),
}


def encoded(capture: Capture, piece_bytes: int = 2**20) -> bytes:
    return b"".join(encode_capture(capture, piece_bytes))


@pytest.mark.parametrize("piece_bytes", [1, 12, 13, 25, 2**20])
def test_capture_round_trip_in_pieces_of_any_size(piece_bytes):
    decoded = decode_capture(encoded(Capture({"x": 1}, ARRAYS), piece_bytes))

    assert decoded.meta == {"x": 1}
    assert list(decoded.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert decoded.arrays[name].dtype == array.dtype
        assert decoded.arrays[name].shape == array.shape
        assert decoded.arrays[name].flags.writeable
        np.testing.assert_array_equal(decoded.arrays[name], array)


def test_capture_round_trip_keeps_128_bit_integers_and_marked_texts():
    rng = np.random.default_rng(5)
    meta = {
        "rng": rng.bit_generator.state,
        "edges": [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**127 + 1, True, None, 0.1, 1e308],
        "texts": ["int:5", "int:x", "str:int:5", "str:", "plain"],
        "nested": {"a": [{"b": []}]},
    }

    decoded = decode_capture(encoded(Capture(meta)))

    assert decoded.meta == meta
    assert [type(v) for v in decoded.meta["edges"]] == [type(v) for v in meta["edges"]]
    restored = np.random.default_rng(0)
    restored.bit_generator.state = decoded.meta["rng"]
    assert restored.integers(2**62) == rng.integers(2**62)


@pytest.mark.parametrize("piece_bytes", [1, 100, 1000, 10**6])
def test_pieces_of_hold_whole_messages_and_all_of_them(piece_bytes):
    data = encoded(Capture({}, ARRAYS), 12)
    longest = max(map(len, messages(data)))

    pieces = list(pieces_of(data, piece_bytes))

    assert b"".join(pieces) == data
    assert all(len(piece) < piece_bytes + longest for piece in pieces)
    assert [bytes(m) for piece in pieces for m in messages(piece)] == list(
        map(bytes, messages(data))
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 19), st.integers(1, 7))
def test_filler_takes_rows_around_the_end_in_ring_order(n, start, step):
    wanted, got = np.arange(n), np.full(n, -1)
    filler, given_rows = ArrayFiller({"a": got}), 0
    while given_rows < n:
        first = (start + given_rows) % n
        rows = min(step, n - first, n - given_rows)
        filler.put(Rows("a", first, wanted[first : first + rows]))
        given_rows += rows
    filler.check_complete()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "rows",
    [
        Rows("other", 2, np.zeros(1)),
        Rows("a", 3, np.zeros(1)),
        Rows("a", 1, np.zeros(1)),
        Rows("a", 2, np.zeros(3)),
        Rows("a", 2, np.zeros(0)),
        Rows("a", -2, np.zeros(1)),
        Rows("a", 2**70, np.zeros(1)),
        Rows("a", 2, np.zeros(1, np.float32)),
        Rows("a", 2, np.zeros((1, 1))),
    ],
)
def test_filler_refuses_rows_that_are_not_the_next(rows):
    filler = ArrayFiller({"a": np.zeros(4)})
    filler.put(Rows("a", 0, np.ones(2)))

    with pytest.raises(WireFormatError):
        filler.put(rows)
    with pytest.raises(WireFormatError, match="'a': 2"):
        filler.check_complete()


def test_filler_refuses_rows_once_all_are_there():
    filler = ArrayFiller({"a": np.zeros(2)})
    filler.put(Rows("a", 0, np.ones(2)))

    with pytest.raises(WireFormatError):
        filler.put(Rows("a", 0, np.ones(2)))


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def head_message(meta: dict) -> bytes:
    return wire.encode("capture", meta, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 64,
        wire.encode("rows", {}, {}),
        head_message({}),
        head_message({"state": {}}),
        head_message({"state": 1, "arrays": []}),
        head_message({"state": {}, "arrays": {}}),
        head_message({"state": {}, "arrays": [], "more": 1}),
        head_message({"state": {}, "arrays": [["a", "<f4"]]}),
        head_message({"state": {}, "arrays": [["a", "|O", [1]]]}),
        head_message({"state": {}, "arrays": [["a", "<f4", [0]], ["a", "<f4", [0]]]}),
        head_message({"state": {}, "arrays": [["a", "<f4", [2**40]]]}),
        head_message({"state": {}, "arrays": [["a", "<f4", [2**62, 2**62]]]}),
        head_message({"state": {}, "arrays": [["a", "<f4", [0, 2**62, 2**62]]]}),
        head_message({"state": {}, "arrays": [["a", "<f4", [1] * 70]]}),
        head_message({"state": {"a": "int:x"}, "arrays": []}),
        head_message({"state": {"a": nested(101)}, "arrays": []}),
        head_message({"state": {}, "arrays": [["a", "<f4", [1]]]}),
        encode_head({}, {}) + encode_head({}, {}),
        encode_head({}, {}) + encode_rows(Rows("a", 0, np.zeros(1))),
        encode_head({}, {"a": ("<f4", (2,))}) + wire.encode("rows", {"array": "a"}, {}),
        encode_head({}, {"a": ("<f4", (2,))})
        + wire.encode("rows", {"array": 1, "first": 0}, {"rows": np.zeros(2, "<f4")}),
        encode_head({}, {"a": ("<f4", (2,))})
        + wire.encode("rows", {"array": "a", "first": 0.0}, {"rows": np.zeros(2, "<f4")}),
        encode_head({}, {"a": ("<f4", ())})
        + wire.encode("rows", {"array": "a", "first": 0}, {"rows": np.zeros((), "<f4")}),
        encoded(Capture({}, ARRAYS))[:-1],
    ],
)
def test_decode_capture_wrong_stream_is_refused(data):
    with pytest.raises(WireFormatError):
        decode_capture(data)


def test_encode_state_too_deep_or_too_large_to_be_read_again_is_refused():
    with pytest.raises(WireFormatError):
        encode_head({"a": nested(101)}, {})
    with pytest.raises(WireFormatError, match="once parsed"):
        encode_head({"a": [{}] * 1_000_000}, {})


def test_decode_2000_mutations_raise_nothing_but_wire_format_error_and_stay_small():
    rng = np.random.default_rng(20_241_127)
    meta = {"rng": np.random.default_rng(1).bit_generator.state, "log": [[1, 2], [3, 4]]}
    original = encoded(Capture(meta, ARRAYS), 24)
    refused = 0
    tracemalloc.start()

    for index in range(2_000):
        parts = [bytearray(message) for message in messages(original)]
        part = parts[int(rng.integers(len(parts)))]
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(32, len(part)))
            operation = rng.integers(3)
            if operation == 0:
                part[at] = rng.integers(256)
            elif operation == 1:
                part[at : at + 8] = rng.bytes(8)
            else:
                part[at : at + 4] = b"\xdd\xff\xff\xff"
        if index % 4:
            part[:] = sealed(part)
        if index % 5 == 0:
            parts.pop(int(rng.integers(len(parts))))
        try:
            decode_capture(b"".join(parts))
        except WireFormatError:
            refused += 1

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 1_000
    assert peak_bytes < 2**21


def sealed(part: bytearray) -> bytes:
    """The message with a right checksum, so that it gets past it."""
    magic, version, flags, head_bytes, _, _, zero = wire.HEADER.unpack_from(part)
    body = bytes(part[32:])
    head_bytes = min(head_bytes, len(body))
    return (
        wire.HEADER.pack(
            magic, version, flags, head_bytes, len(body) - head_bytes, zlib.crc32(body), zero
        )
        + body
    )


def test_head_with_mixed_keys_is_refused():
    raw = msgpack.packb({"kind": "capture", "meta": {b"a": 1, "b": 2}, "columns": []})
    raw += b"\0" * (-len(raw) % 8)
    header = wire.HEADER.pack(b"QFLT", 1, 0, len(raw), 0, zlib.crc32(raw), 0)

    with pytest.raises(WireFormatError):
        decode_head(header + raw)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), TypeError("x"), IndexError("x"), OverflowError("x"), WireFormatError("x")],
)
def test_restoring_makes_any_mistake_a_checkpoint_error(error):
    with (
        pytest.raises(CheckpointError, match="the state of a is damaged"),
        restoring("the state of a"),
    ):
        raise error


def test_restoring_leaves_our_own_errors_and_what_is_no_mistake_of_the_data():
    for error in (CheckpointError("does not fit"), OSError("x")):
        with pytest.raises(type(error)), restoring("a"):
            raise error
