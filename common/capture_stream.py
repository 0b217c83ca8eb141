"""Captured states as streams of messages: a head, then rows of its arrays, each with a checksum.

    "capture": meta {"state": {…}, "arrays": [[name, dtype, shape], …]}
    "rows":    meta {"array": name, "first": row}, columns {"rows": array[first : first + n]}

Every core's state is written in this form, to a file or across Ray, and read back from it. The rows
of an array come in order from any row on, around its end (a ring's oldest first), so neither side
ever holds more of them than one message. Called by the fleets, the shells and the replay shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from qfleet.common import wire
from qfleet.common.errors import CheckpointError, QfleetError, WireFormatError
from qfleet.common.types import Array, Capture, Columns

PIECE_BYTES = 768 * 1024
"""About how much of a state travels, or is copied, at once: `inline_pieces` takes as much."""
MAX_STATE_BYTES = 2**26
"""A head's limit: it is parsed as a whole, the arrays are not."""

_BIG_INT = "int:"
"""JSON and msgpack stop at 64 bits; NumPy's generators hold 128-bit integers as such text."""
_TEXT = "str:"
"""Put before a text that begins like one of these two marks."""
_MAX_DEPTH = 100

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Of each array: dtype string and shape."""

Streams = dict[str, Iterable[bytes]]
"""Files of a checkpoint by name, each read once."""


class Rows(NamedTuple):
    """Consecutive rows of one array of a capture."""

    array: str
    first: int
    values: Array
    """`[n, …]`; of an array without dimensions `[1]`."""


class CaptureHead(NamedTuple):
    """What comes first: the state, and which arrays follow."""

    meta: dict[str, Any]
    shapes: Shapes


def shapes_of(arrays: Columns) -> Shapes:
    """As a head lists them."""
    return {name: (array.dtype.str, array.shape) for name, array in arrays.items()}


def encode_head(meta: Mapping[str, Any], shapes: Shapes) -> bytes:
    """The first message of a stream."""
    arrays = [[name, dtype, list(shape)] for name, (dtype, shape) in shapes.items()]
    data = wire.encode("capture", {"state": _pack_ints(meta), "arrays": arrays}, {})
    decode_head(data)  # what cannot be read again must not be written
    return data


def encode_rows(rows: Rows) -> bytes:
    """One message of rows."""
    return wire.encode("rows", {"array": rows.array, "first": rows.first}, {"rows": rows.values})


def rows_of(name: str, array: Array, piece_bytes: int = PIECE_BYTES) -> Iterator[Rows]:
    """An array's rows in views of at most about `piece_bytes`."""
    rows = array if array.ndim else array.reshape(1)
    step = max(1, piece_bytes * len(rows) // max(1, rows.nbytes))
    for first in range(0, len(rows), step):
        yield Rows(name, first, rows[first : first + step])


def encode_capture(capture: Capture, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """A whole capture as a stream; each message is made when it is asked for."""
    yield encode_head(capture.meta, shapes_of(capture.arrays))
    for name, array in capture.arrays.items():
        yield from map(encode_rows, rows_of(name, array, piece_bytes))


def decode_head(message: bytes | memoryview) -> CaptureHead:
    """The first message.

    Raises:
        WireFormatError: when it is not one.
    """
    meta, columns = wire.decode(message, "capture", max_head_bytes=MAX_STATE_BYTES)
    is_head = set(meta) == {"state", "arrays"} and isinstance(meta["state"], dict)
    if not is_head or columns or not isinstance(meta["arrays"], list):
        raise WireFormatError("a capture begins with its state, a map, and a list of its arrays")
    shapes: Shapes = {}
    for entry in meta["arrays"]:
        name, dtype, shape = wire.check_column(entry)
        if name in shapes:
            raise WireFormatError(f"a capture's array {name!r} occurs twice")
        shapes[name] = (dtype.str, shape)
    return CaptureHead(_unpack_ints(meta["state"]), shapes)


def decode_rows(message: bytes | memoryview) -> Rows:
    """A further message; the rows are a read-only view into it.

    Raises:
        WireFormatError: when it is not one.
    """
    meta, columns = wire.decode(message, "rows")
    if set(meta) != {"array", "first"} or list(columns) != ["rows"] or columns["rows"].ndim == 0:
        raise WireFormatError("rows of a capture must hold array, first and rows alone")
    if not (isinstance(meta["array"], str) and type(meta["first"]) is int):
        raise WireFormatError("rows of a capture must name their array and their first row")
    return Rows(meta["array"], meta["first"], columns["rows"])


def pieces_of(data: bytes | memoryview, piece_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
    """A stream in parts of whole messages, each of about `piece_bytes`, as views."""
    view, start, end = memoryview(data), 0, 0
    while end < len(view):
        end += wire.message_bytes(view[end:])
        if end - start >= piece_bytes or end == len(view):
            yield view[start:end]
            start = end


def messages(data: bytes | memoryview) -> Iterator[memoryview]:
    """The single messages of a stream, or of a part of one, as views."""
    return pieces_of(data, 1)


class ArrayFiller:
    """Writes rows into `arrays` in place, and knows when none is missing.

    Each array's rows must come in order, from any row on and around its end.
    """

    def __init__(self, arrays: Columns) -> None:
        self._arrays = {n: a if a.ndim else a.reshape(1) for n, a in arrays.items()}
        self._next: dict[str, int] = {}
        self._missing = {name: len(array) for name, array in self._arrays.items()}

    def put(self, rows: Rows) -> None:
        """Write rows.

        Raises:
            WireFormatError: when they are not the ones that follow, or not of that array's form.
        """
        name, first, values = rows
        array = self._arrays.get(name)
        if array is None:
            raise WireFormatError(f"the capture has no array {name!r}")
        if values.dtype != array.dtype or values.shape[1:] != array.shape[1:]:
            raise WireFormatError(f"rows of {name} are {values.dtype}{list(values.shape)}")
        stop, wanted = first + len(values), self._next.get(name, first)
        if first != wanted or not 0 <= first < stop <= len(array) or self.misses(name, len(values)):
            raise WireFormatError(f"rows {first}…{stop} of {name} are not the next: {wanted}")
        array[first:stop] = values
        self._next[name] = stop % len(array)
        self._missing[name] -= len(values)

    def misses(self, name: str, rows: int) -> bool:
        """Whether fewer than `rows` rows of an array are missing."""
        return self._missing[name] < rows

    def check_complete(self) -> None:
        """Raise `WireFormatError` when rows are missing."""
        missing = {name: n for name, n in self._missing.items() if n}
        if missing:
            raise WireFormatError(f"the capture ends with rows missing: {missing}")


def decode_capture(data: bytes | memoryview) -> Capture:
    """A whole stream as a capture; the arrays are new and may be written to.

    Raises:
        WireFormatError: on any departure from the format, naming it.
    """
    stream = messages(data)
    first = next(stream, None)
    if first is None:
        raise WireFormatError("a capture must not be empty")
    head = decode_head(first)
    sizes = [np.dtype(d).itemsize * int(np.prod(s, dtype=object)) for d, s in head.shapes.values()]
    if sum(sizes) > len(data):
        raise WireFormatError(f"arrays of {sum(sizes)} bytes in a capture of {len(data)} bytes")
    try:
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in head.shapes.items()}
    except ValueError as error:  # too many or, beside a 0, too large extents
        raise WireFormatError(f"a capture's array cannot have its shape: {error}") from error
    filler = ArrayFiller(arrays)
    for message in stream:
        filler.put(decode_rows(message))
    filler.check_complete()
    return Capture(head.meta, arrays)


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turns whatever a damaged capture raises in the code that takes it into `CheckpointError`.

    A checkpoint's checksums say that it is as it was written, not that what was written is right.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (
        QfleetError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{what} is damaged: {reason}") from error


def _pack_ints(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Mapping):
        return {key: _pack_ints(item, _deeper(depth)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack_ints(item, _deeper(depth)) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return f"{_BIG_INT}{value}"
    if isinstance(value, str) and value.startswith((_BIG_INT, _TEXT)):
        return f"{_TEXT}{value}"
    return value


def _unpack_ints(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {key: _unpack_ints(item, _deeper(depth)) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack_ints(item, _deeper(depth)) for item in value]
    if isinstance(value, str) and value.startswith(_BIG_INT):
        try:
            return int(value.removeprefix(_BIG_INT))
        except ValueError as error:
            raise WireFormatError("a captured integer is not a number") from error
    if isinstance(value, str) and value.startswith(_TEXT):
        return value.removeprefix(_TEXT)
    return value


def _deeper(depth: int) -> int:
    if depth >= _MAX_DEPTH:
        raise WireFormatError(f"a capture's state is nested more than {_MAX_DEPTH} deep")
    return depth + 1
