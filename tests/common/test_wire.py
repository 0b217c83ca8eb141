import struct
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qfleet.common import wire
from qfleet.common.errors import WireFormatError

DTYPES = ["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (2, 3), (1, 2, 3, 4)]


def forge(head: object, payload: bytes = b"", *, raw_head: bytes | None = None) -> bytes:
    """A message with a right header and checksum around whatever it is given."""
    head_bytes = msgpack.packb(head) if raw_head is None else raw_head
    if raw_head is None:
        head_bytes += b"\0" * (-len(head_bytes) % 8)
    checksum = zlib.crc32(payload, zlib.crc32(head_bytes))
    header = struct.pack("<4sHHIQIQ", b"QFLT", 1, 0, len(head_bytes), len(payload), checksum, 0)
    return header + head_bytes + payload


def forge_columns(*columns: object, payload: bytes = b"") -> bytes:
    return forge({"kind": "k", "meta": {}, "columns": list(columns)}, payload)


def message() -> bytes:
    columns = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    return wire.encode("k", {"x": 1, "text": "ü", "none": None, "list": [1, 2.5]}, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_encode_any_dtype_and_shape_round_trips(dtype, shape):
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)

    _, columns = wire.decode(wire.encode("k", {}, {"a": array}), "k")

    assert columns["a"].dtype == np.dtype(dtype)
    assert columns["a"].shape == shape
    np.testing.assert_array_equal(columns["a"], array)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=4,
    )
)
def test_encode_any_columns_round_trip_in_order(columns):
    meta, decoded = wire.decode(wire.encode("k", {"n": len(columns)}, columns), "k")

    assert meta == {"n": len(columns)}
    assert list(decoded) == list(columns)
    for name, array in columns.items():
        assert decoded[name].dtype == array.dtype
        assert decoded[name].shape == array.shape
        assert decoded[name].tobytes() == array.tobytes()


def test_encode_big_endian_and_strided_arrays_arrive_little_endian_and_equal():
    columns = {
        "big": np.arange(4, dtype=">i4"),
        "strided": np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }

    _, decoded = wire.decode(wire.encode("k", {}, columns), "k")

    assert decoded["big"].dtype.str == "<i4"
    for name, array in columns.items():
        np.testing.assert_array_equal(decoded[name], array)


def test_decode_gives_meta_and_read_only_aligned_views():
    data = message()

    meta, columns = wire.decode(data, "k")

    assert meta == {"x": 1, "text": "ü", "none": None, "list": [1, 2.5]}
    assert not columns["a"].flags.writeable
    assert np.shares_memory(columns["a"], np.frombuffer(data, np.uint8))
    _, of_writeable = wire.decode(bytearray(data), "k")
    assert not of_writeable["a"].flags.writeable
    assert len(data) % 8 == 0


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["a"]),
        np.array([1j]),
        np.zeros(1, "M8[s]"),
        np.zeros(1, "V4"),
    ],
)
def test_encode_dtype_that_is_no_number_is_refused(array):
    with pytest.raises(WireFormatError, match="cannot be sent"):
        wire.encode("k", {}, {"a": array})


def patched(offset: int, replacement: bytes) -> bytes:
    data = bytearray(message())
    data[offset : offset + len(replacement)] = replacement
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "shorter than its header"),
        (message()[:31], "shorter than its header"),
        (patched(0, b"ELFQ"), "magic"),
        (patched(4, b"\2\0"), "version 2"),
        (patched(6, b"\1\0"), "flags 1"),
        (patched(24, b"\0\0\1"), "reserved"),
        (message()[:-1], "do not add up"),
        (message() + b"\0", "do not add up"),
        (patched(12, struct.pack("<Q", 2**63)), "do not add up"),
        (patched(8, struct.pack("<I", wire.MAX_HEAD_BYTES + 8)), "over the limit of 65536"),
    ],
)
def test_decode_wrong_header_is_refused(data, words):
    with pytest.raises(WireFormatError, match=words):
        wire.decode(data, "k")


def test_decode_message_over_the_limit_is_refused_before_its_checksum():
    data = patched(20, b"\0\0\0\0")

    with pytest.raises(WireFormatError, match="over the limit of 40"):
        wire.decode(data, "k", max_bytes=40)


def test_decode_head_of_exactly_the_limit_is_read_and_one_word_more_refused():
    data = message()
    (head_bytes,) = struct.unpack_from("<I", data, 8)

    wire.decode(data, "k", max_head_bytes=head_bytes)
    with pytest.raises(WireFormatError, match="head of"):
        wire.decode(data, "k", max_head_bytes=head_bytes - 8)


def test_decode_one_flipped_bit_at_any_of_64_positions_is_refused():
    data = message()
    positions = np.linspace(0, len(data) * 8 - 1, 64).astype(int)

    for position in positions.tolist():
        corrupt = bytearray(data)
        corrupt[position // 8] ^= 1 << (position % 8)
        with pytest.raises(WireFormatError):
            wire.decode(bytes(corrupt), "k")


def test_decode_flipped_payload_byte_names_the_checksum():
    data = bytearray(message())
    data[-9] ^= 1

    with pytest.raises(WireFormatError, match="checksum"):
        wire.decode(bytes(data), "k")


def test_decode_other_kind_is_refused():
    with pytest.raises(WireFormatError, match="expected 'other'"):
        wire.decode(message(), "other")


@pytest.mark.parametrize(
    "head",
    [
        [],
        1,
        "text",
        None,
        {},
        {"kind": "k", "meta": {}},
        {"kind": "k", "meta": {}, "columns": [], "more": 1},
        {"kind": 1, "meta": {}, "columns": []},
        {"kind": "k", "meta": [], "columns": []},
        {"kind": "k", "meta": {}, "columns": {}},
        {"kind": "k", "meta": {1: 2}, "columns": []},
        {"kind": "k", "meta": {"x": msgpack.ExtType(5, b"")}, "columns": []},
        {"kind": "k", "meta": {"x": msgpack.ExtType(5, b"abc")}, "columns": []},
        {"kind": "k", "meta": {"x": msgpack.Timestamp(1)}, "columns": []},
    ],
)
def test_decode_wrong_head_is_refused(head):
    with pytest.raises(WireFormatError):
        wire.decode(forge(head), "k")


@pytest.mark.parametrize(
    "raw_head",
    [
        b"",
        b"\xc1" * 8,  # never used in msgpack
        b"\x91" * 64_000,  # nested beyond any stack
        b"\xdd\x00\x00\xfa\x00" * 12_800,  # each level claims 64,000 items
        b"\xdf\x00\x00\xfa\x00" * 12_800,
        b"\xdb\xff\xff\xff\xff",  # a text of 4 GiB
        b"\xa2\xff\xff",  # no UTF-8
        b"\x81\xc7\x00\x05\x01",  # extension type as a key
        msgpack.packb({"kind": "k", "meta": {}, "columns": []}) + b"\0" * 8,
        msgpack.packb({"kind": "k", "meta": {}, "columns": []}) + b"\1",
    ],
)
def test_decode_junk_head_is_refused_within_bounded_memory(raw_head):
    data = forge(None, raw_head=raw_head)
    tracemalloc.start()

    with pytest.raises(WireFormatError):
        wire.decode(data, "k")

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20 + 8 * len(data)


@pytest.mark.parametrize(
    "column",
    [
        "a",
        ["a", "<f4"],
        ["a", "<f4", [1], 0],
        [1, "<f4", [1]],
        ["a", 4, [1]],
        ["a", "<f4", 1],
        ["a", "<f4", [-1]],
        ["a", "<f4", [1.0]],
        ["a", "<f4", [True]],
        ["a", ">f4", [1]],
        ["a", "|O", [1]],
        ["a", "<f16", [1]],
        ["a", "<c8", [1]],
        ["a", "<U1", [1]],
        ["a", "<M8[s]", [1]],
        ["a", "float32", [1]],
        ["a", "f4,f4", [1]],
        ["a", "(1000000000,)f4", [1]],
        ["a", "", [1]],
        ["a", "((", [1]],
        ["a", "<f4", [3]],
        ["a", "<f4", [2**62, 2**62]],
        ["a", "<f4", [0, 2**63]],
        ["a", "<f4", [0, 2**62, 2**62]],
        ["a", "<f4", [1] * 70],
    ],
)
def test_decode_wrong_column_is_refused(column):
    with pytest.raises(WireFormatError):
        wire.decode(forge_columns(column, payload=b"\0" * 8), "k")


def test_decode_duplicate_column_is_refused():
    column = ["a", "<f4", [2]]

    with pytest.raises(WireFormatError, match="occurs twice"):
        wire.decode(forge_columns(column, column, payload=b"\0" * 16), "k")


def test_decode_bytes_of_no_column_are_refused():
    with pytest.raises(WireFormatError, match="8 bytes belong to no column"):
        wire.decode(forge_columns(["a", "<f4", [2]], payload=b"\0" * 16), "k")


def test_decode_2000_mutations_raise_nothing_but_wire_format_error_and_stay_small():
    rng = np.random.default_rng(20_240_601)
    original = message()
    refused = 0
    tracemalloc.start()

    for index in range(2_000):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            operation = rng.integers(4)
            at = int(rng.integers(len(data) + 1))
            if operation == 0 and at < len(data):
                data[at] = rng.integers(256)
            elif operation == 1:
                del data[at : at + int(rng.integers(1, 9))]
            elif operation == 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            else:
                data[at : at + 4] = b"\xdd\xff\xff\xff"
        if index % 2 and len(data) >= 32:
            _repair_header(data)  # so that half of them get past lengths and checksum
        try:
            wire.decode(bytes(data), "k")
        except WireFormatError:
            refused += 1

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 1_500
    assert peak_bytes < 2**20


def _repair_header(data: bytearray) -> None:
    body = bytes(data[32:])
    head_bytes = min(len(body), struct.unpack_from("<I", message(), 8)[0])
    data[:32] = struct.pack(
        "<4sHHIQIQ", b"QFLT", 1, 0, head_bytes, len(body) - head_bytes, zlib.crc32(body), 0
    )


def test_parts_round_trip_keeps_names_and_bytes():
    parts = {"learner": b"abc", "planner": b"", "odd": bytes(range(13))}
    assert wire.decode_parts(wire.encode_parts(parts)) == parts


def test_message_bytes_reads_the_length_of_the_first_message():
    data = message()

    assert wire.message_bytes(memoryview(data + b"more")) == len(data)
    for wrong in (b"", data[:31], data[:-1], b"x" + data):
        with pytest.raises(WireFormatError, match=r"no message|cut off"):
            wire.message_bytes(memoryview(wrong))


@pytest.mark.parametrize("many", [{}, [], {"a": []}, [[]], 0, "", b"", None, 1.5])
def test_decode_large_head_of_many_small_values_is_refused_before_they_are_made(many):
    body = msgpack.packb(many)
    items = [body] * (8 * 2**20 // len(body))
    state = msgpack.Packer().pack_array_header(len(items)) + b"".join(items)
    head = b"\x83" + msgpack.packb("kind") + msgpack.packb("capture") + msgpack.packb("meta")
    head += b"\x81" + msgpack.packb("state") + state + msgpack.packb("columns") + b"\x90"
    data = forge(None, raw_head=head + b"\0" * (-len(head) % 8))
    tracemalloc.start()

    with pytest.raises(WireFormatError, match="once parsed"):
        wire.decode(data, "capture", max_head_bytes=2**26)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 * 2**20


def test_decode_large_head_of_few_values_is_read():
    meta = {"log": list(range(100_000)), "text": "x" * 1_000_000}

    assert wire.decode(wire.encode("k", meta, {}), "k", max_head_bytes=2**26)[0] == meta
