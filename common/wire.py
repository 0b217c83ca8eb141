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

import reprlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from qfleet.common.errors import WireFormatError
from qfleet.common.types import Array, Columns

MAGIC = b"QFLT"
VERSION = 1
HEADER = struct.Struct("<4sHHIQIQ")
MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 64 * 1024 * 1024
MAX_PARSED_BYTES = 16 * 1024 * 1024
"""What the values of a head may take in memory, about; a small head cannot take as much."""
ALIGNMENT_BYTES = 8
_VALUE_BYTES = 40

_DTYPES = {
    dtype.newbyteorder("<").str: dtype.newbyteorder("<")
    for dtype in map(np.dtype, ["?", *np.typecodes["AllInteger"], "e", "f", "d"])
}
"""What may cross the wire, by the one spelling accepted; long double differs between machines."""


def encode(kind: str, meta: Mapping[str, Any], columns: Mapping[str, Array]) -> bytes:
    """One message of `kind` as bytes; `meta` holds plain msgpack values only."""
    description: list[list[Any]] = []
    parts: list[bytes | memoryview] = []
    payload_bytes = 0
    for name, array in columns.items():
        contiguous = np.ascontiguousarray(array)
        little = contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)
        if little.dtype.str not in _DTYPES:
            raise WireFormatError(f"column {name} has dtype {little.dtype}, which cannot be sent")
        description.append([name, little.dtype.str, list(array.shape)])
        padding = -little.nbytes % ALIGNMENT_BYTES
        parts += [little.reshape(-1).view(np.uint8).data, b"\0" * padding]
        payload_bytes += little.nbytes + padding
    head: bytes = msgpack.packb({"kind": kind, "meta": dict(meta), "columns": description})
    head += b"\0" * (-len(head) % ALIGNMENT_BYTES)
    checksum = zlib.crc32(head)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    header = HEADER.pack(MAGIC, VERSION, 0, len(head), payload_bytes, checksum, 0)
    return b"".join([header, head, *parts])


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
        raise WireFormatError(f"message is of kind {_text(head['kind'])}, expected {kind!r}")
    return head["meta"], _read_columns(view[HEADER.size + head_bytes :], head["columns"])


def message_bytes(view: memoryview) -> int:
    """Length of the message that `view` begins with, by its header.

    Raises:
        WireFormatError: when no whole message is there.
    """
    if len(view) < HEADER.size or bytes(view[:4]) != MAGIC:
        raise WireFormatError(f"no message begins in these {len(view)} bytes")
    _, _, _, head_bytes, payload_bytes, _, _ = HEADER.unpack_from(view)
    n_bytes = HEADER.size + head_bytes + payload_bytes
    if n_bytes > len(view):
        raise WireFormatError(f"message of {n_bytes} bytes is cut off after {len(view)}")
    return int(n_bytes)


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
        if len(view) > MAX_HEAD_BYTES:
            _skip_counting(walker, view)
        else:
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


def _skip_counting(walker: msgpack.Unpacker, view: memoryview) -> None:
    """Refuse a large head of many small values: an empty map takes 1 byte here, 64 in memory."""
    waiting, parsed_bytes = 1, 0
    while waiting:
        lead = view[walker.tell()]
        waiting -= 1
        parsed_bytes += _VALUE_BYTES
        if 0x80 <= lead <= 0x8F or lead in (0xDE, 0xDF):
            waiting += 2 * walker.read_map_header()
        elif 0x90 <= lead <= 0x9F or lead in (0xDC, 0xDD):
            waiting += walker.read_array_header()
        else:
            start = walker.tell()
            walker.skip()
            parsed_bytes += walker.tell() - start
        if parsed_bytes > MAX_PARSED_BYTES:
            raise WireFormatError(f"head takes more than {MAX_PARSED_BYTES} bytes once parsed")


_text = reprlib.repr
"""Of a value that came with a message: short, however long or deeply nested it is."""


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")


def _read_columns(payload: memoryview, description: list[Any]) -> Columns:
    columns: Columns = {}
    offset = 0
    for entry in description:
        name, dtype, shape = check_column(entry)
        if name in columns:
            raise WireFormatError(f"column {_text(name)} occurs twice")
        n_items = int(np.prod(shape, dtype=object)) if shape else 1
        n_bytes = n_items * dtype.itemsize
        if offset + n_bytes > len(payload):
            raise WireFormatError(f"column {_text(name)} is longer than the message")
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
        raise WireFormatError(
            f"column {_text(name)} cannot have shape {_text(list(shape))}"
        ) from error
    array.flags.writeable = False
    return array


def check_column(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Name, dtype and shape of a column's description.

    Raises:
        WireFormatError: when it is none.
    """
    if not (isinstance(entry, list) and len(entry) == 3):
        raise WireFormatError("a column's description must be [name, dtype, shape]")
    name, dtype_name, shape = entry
    if not (isinstance(name, str) and isinstance(dtype_name, str) and isinstance(shape, list)):
        raise WireFormatError("a column's description must be [str, str, list]")
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise WireFormatError(f"column {_text(name)} has shape {_text(shape)}")
    if dtype_name not in _DTYPES:
        raise WireFormatError(
            f"column {_text(name)} has dtype {_text(dtype_name)}, which is not allowed"
        )
    return name, _DTYPES[dtype_name], tuple(shape)


def encode_parts(parts: Mapping[str, bytes]) -> bytes:
    """Named byte strings as one message."""
    columns = {name: np.frombuffer(data, dtype=np.uint8) for name, data in parts.items()}
    return encode("parts", {}, columns)


def decode_parts(data: bytes | memoryview) -> dict[str, bytes]:
    """The inverse of `encode_parts`."""
    _, columns = decode(data, "parts", max_bytes=2**40)
    return {name: column.tobytes() for name, column in columns.items()}
