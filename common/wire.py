"""The one byte format of qfleet: chunks, samples, snapshots on the wire and segments on disk.

A message is a fixed 32-byte header, a small msgpack map (the head) and the arrays' raw bytes:

    magic "QFLT" · version u16 · flags u16 · head bytes u32 · payload bytes u64 · CRC-32 u32 · 0 u64
    head: {"kind": str, "meta": {…}, "columns": [[name, dtype, shape], …]}
    payload: each column's little-endian bytes in that order, each padded to 8 bytes

Sizes and checksum are checked before msgpack sees a byte, the head is capped, and no extension type
or pickle is accepted, so a corrupt or foreign message is refused at a bounded cost. The columns'
bytes follow the map instead of standing in it so that the cap holds for the parsed part alone and
arrays are views, not copies.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from qfleet.common.errors import WireFormatError
from qfleet.common.types import Array, Capture, Columns

MAGIC = b"QFLT"
VERSION = 1
HEADER = struct.Struct("<4sHHIQIQ")
MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 64 * 1024 * 1024
ALIGNMENT_BYTES = 8

_DTYPES = {
    dtype.newbyteorder("<").str: dtype.newbyteorder("<")
    for dtype in map(np.dtype, ["?", *np.typecodes["AllInteger"], "e", "f", "d"])
}
"""What may cross the wire, by the one spelling accepted; long double differs between machines."""


def encode(kind: str, meta: Mapping[str, Any], columns: Mapping[str, Array]) -> bytes:
    """One message of `kind` as bytes; `meta` holds plain msgpack values only."""
    *body, header = encode_pieces(kind, meta, columns)
    return b"".join([header, *body])


def encode_pieces(
    kind: str,
    meta: Mapping[str, Any],
    columns: Mapping[str, Array],
    piece_bytes: int | None = None,
) -> Iterator[bytes]:
    """The same message bit by bit: what follows the header in order, the header at last.

    Each piece is made when it is asked for, and holds at most `piece_bytes` of a column. For large
    messages: no second copy of the whole is held, and no long pause while it is made.
    """
    description: list[list[Any]] = []
    parts: list[memoryview] = []
    payload_bytes = 0
    for name, array in columns.items():
        contiguous = np.ascontiguousarray(array)
        little = contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)
        if little.dtype.str not in _DTYPES:
            raise WireFormatError(f"column {name} has dtype {little.dtype}, which cannot be sent")
        description.append([name, little.dtype.str, list(array.shape)])
        parts.append(little.reshape(-1).view(np.uint8).data)
        payload_bytes += _padded(little.nbytes)
    head: bytes = msgpack.packb({"kind": kind, "meta": dict(meta), "columns": description})
    head += b"\0" * (-len(head) % ALIGNMENT_BYTES)
    yield head
    checksum = zlib.crc32(head)
    for part in parts:
        step = piece_bytes or len(part) or 1
        for start in range(0, len(part), step):
            piece = bytes(part[start : start + step])
            if start + step >= len(part):
                piece += b"\0" * (-len(part) % ALIGNMENT_BYTES)
            checksum = zlib.crc32(piece, checksum)
            yield piece
    yield HEADER.pack(MAGIC, VERSION, 0, len(head), payload_bytes, checksum, 0)


def _padded(n_bytes: int) -> int:
    return n_bytes + (-n_bytes % ALIGNMENT_BYTES)


def decode(
    data: bytes | memoryview,
    kind: str,
    *,
    max_bytes: int = MAX_CHUNK_BYTES,
    max_head_bytes: int = MAX_HEAD_BYTES,
) -> tuple[dict[str, Any], Columns]:
    """`(meta, columns)` of a message; columns are read-only views into `data`.

    Raises:
        WireFormatError: on any departure from the format, naming it.
    """
    view = memoryview(data)
    head_bytes, checksum = _check_header(view, max_bytes, max_head_bytes)
    if zlib.crc32(view[HEADER.size :]) != checksum:
        raise WireFormatError("checksum does not match: the message is corrupt")
    head = _parse_head(view[HEADER.size : HEADER.size + head_bytes])
    if head["kind"] != kind:
        raise WireFormatError(f"message is of kind {head['kind']!r}, expected {kind!r}")
    return head["meta"], _read_columns(view[HEADER.size + head_bytes :], head["columns"])


def _check_header(view: memoryview, max_bytes: int, max_head_bytes: int) -> tuple[int, int]:
    if len(view) < HEADER.size:
        raise WireFormatError(f"message of {len(view)} bytes is shorter than its header")
    if len(view) > max_bytes:
        raise WireFormatError(f"message of {len(view)} bytes is over the limit of {max_bytes}")
    magic, version, flags, head_bytes, payload_bytes, checksum, zero = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise WireFormatError(f"magic is {bytes(magic)!r}, not {MAGIC!r}: not a qfleet message")
    if version != VERSION or flags != 0 or zero != 0:
        raise WireFormatError(
            f"version {version}, flags {flags}, reserved {zero}: this qfleet reads {VERSION}, 0, 0"
        )
    if head_bytes > max_head_bytes:
        raise WireFormatError(f"head of {head_bytes} bytes is over the limit of {max_head_bytes}")
    if HEADER.size + head_bytes + payload_bytes != len(view):
        raise WireFormatError(f"lengths in the header do not add up to {len(view)} bytes")
    return head_bytes, checksum


def _parse_head(view: memoryview) -> dict[str, Any]:
    try:
        # Walked once without building anything: an array that claims more items than there are
        # bytes would otherwise be allocated before it is found short, once per nesting level.
        walker = msgpack.Unpacker(max_buffer_size=len(view) or 1)
        walker.feed(view)
        walker.skip()
        head = msgpack.unpackb(
            view[: walker.tell()],
            raw=False,
            strict_map_key=True,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise WireFormatError(f"head is not a msgpack map: {error}") from error
    padding = view[walker.tell() :]
    if len(padding) >= ALIGNMENT_BYTES or any(padding):
        raise WireFormatError("head has bytes after its map")
    expected = {"kind": str, "meta": dict, "columns": list}
    if not isinstance(head, dict) or set(head) != set(expected):
        raise WireFormatError("head must hold exactly kind, meta and columns")
    for key, wanted in expected.items():
        if not isinstance(head[key], wanted):
            raise WireFormatError(f"head's {key} must be a {wanted.__name__}")
    return head


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")


def _read_columns(payload: memoryview, description: list[Any]) -> Columns:
    columns: Columns = {}
    offset = 0
    for entry in description:
        name, dtype, shape = _check_column(entry)
        if name in columns:
            raise WireFormatError(f"column {name!r} occurs twice")
        n_items = int(np.prod(shape, dtype=object)) if shape else 1
        n_bytes = n_items * dtype.itemsize
        if offset + n_bytes > len(payload):
            raise WireFormatError(f"column {name!r} is longer than the message")
        columns[name] = _view(payload, name, dtype, shape, n_items, offset)
        offset += n_bytes + (-n_bytes % ALIGNMENT_BYTES)
    if offset != len(payload):
        raise WireFormatError(f"{len(payload) - offset} bytes belong to no column")
    return columns


def _view(
    payload: memoryview,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    n_items: int,
    offset: int,
) -> Array:
    try:
        array = np.frombuffer(payload, dtype, n_items, offset).reshape(shape)
    except (ValueError, OverflowError) as error:  # too many or, beside a 0, too large extents
        raise WireFormatError(f"column {name!r} cannot have shape {list(shape)}") from error
    array.flags.writeable = False
    return array


def _check_column(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    if not (isinstance(entry, list) and len(entry) == 3):
        raise WireFormatError("a column's description must be [name, dtype, shape]")
    name, dtype_name, shape = entry
    if not (isinstance(name, str) and isinstance(dtype_name, str) and isinstance(shape, list)):
        raise WireFormatError("a column's description must be [str, str, list]")
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise WireFormatError(f"column {name!r} has shape {shape}")
    if dtype_name not in _DTYPES:
        raise WireFormatError(f"column {name!r} has dtype {dtype_name!r}, which is not allowed")
    return name, _DTYPES[dtype_name], tuple(shape)


_BIG_INT = "int:"
"""JSON and msgpack stop at 64 bits; NumPy's generators hold 128-bit integers as such text."""
_TEXT = "str:"
"""Put before a text that begins like one of these two marks."""


def encode_parts(parts: Mapping[str, bytes]) -> bytes:
    """Named byte strings as one message."""
    columns = {name: np.frombuffer(data, dtype=np.uint8) for name, data in parts.items()}
    return encode("parts", {}, columns)


def decode_parts(data: bytes | memoryview) -> dict[str, bytes]:
    """The inverse of `encode_parts`."""
    _, columns = decode(data, "parts", max_bytes=2**40)
    return {name: column.tobytes() for name, column in columns.items()}


def encode_capture(capture: Capture) -> bytes:
    """A core's captured state as one message, for a checkpoint."""
    return encode("capture", {"state": _pack_ints(capture.meta)}, capture.arrays)


def encode_capture_pieces(capture: Capture, piece_bytes: int) -> Iterator[bytes]:
    """The same in pieces, see `encode_pieces`."""
    return encode_pieces(
        "capture", {"state": _pack_ints(capture.meta)}, capture.arrays, piece_bytes
    )


def decode_capture(data: bytes | memoryview) -> Capture:
    """The inverse of `encode_capture`; arrays are copied, so they may be written to."""
    meta, columns = decode(data, "capture", max_bytes=2**40, max_head_bytes=2**26)
    if set(meta) != {"state"} or not isinstance(meta["state"], dict):
        raise WireFormatError("a capture's meta must hold exactly its state, a map")
    copies = {name: array.copy() for name, array in columns.items()}
    return Capture(_unpack_ints(meta["state"]), copies)


def _pack_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pack_ints(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack_ints(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return f"{_BIG_INT}{value}"
    if isinstance(value, str) and value.startswith((_BIG_INT, _TEXT)):
        return f"{_TEXT}{value}"
    return value


def _unpack_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unpack_ints(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack_ints(item) for item in value]
    if isinstance(value, str) and value.startswith(_BIG_INT):
        try:
            return int(value.removeprefix(_BIG_INT))
        except ValueError as error:
            raise WireFormatError("a captured integer is not a number") from error
    if isinstance(value, str) and value.startswith(_TEXT):
        return value.removeprefix(_TEXT)
    return value
