"""A shard's cuts as they cross processes: pieces given out by number, pieces taken back.

Called by the shard's Ray shell, under whose lock the core is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from qfleet.common.inline_pieces import join, split
from qfleet.replay_server.numbered_pieces import NumberedPieces
from qfleet.replay_server.replay_shard import ReplayShard
from qfleet.replay_server.shard_capture import RestoringShard


class CutTraffic:
    """The cut under way and the restore under way of one shard."""

    def __init__(
        self, core: ReplayShard, lock: threading.Lock, wake_inserts: Callable[[], None]
    ) -> None:
        """`wake_inserts` is called when one may have waited for room that a cut took."""
        self._core, self._lock, self._wake_inserts = core, lock, wake_inserts
        self._pieces: NumberedPieces | None = None
        self._cut, self._head = 0, b""
        self._restoring: RestoringShard | None = None

    def freeze(self, contents: bool, cut: int) -> bytes:
        """Keep the state of now for `next_piece`; returns its head.

        An insert waits when the reader is too slow for it. Without contents: counters and ledger.
        A second call for one cut, by its number, freezes nothing: it may come after the end.
        """
        with self._lock:
            if cut > self._cut:
                frozen = self._core.freeze(contents)
                self._pieces, self._cut, self._head = NumberedPieces(frozen), cut, frozen.head()
            return self._head

    def next_piece(self, number: int, n_parts: int) -> list[bytes] | list[None]:
        """A piece after the head, in parts; None at its end.

        Calls may overtake one another, and one may be made again.
        """
        with self._lock:
            piece = b"" if self._pieces is None else self._pieces.piece(number)
            self._wake_inserts()
        return split(piece, n_parts) if piece else [None] * n_parts

    def drop(self) -> None:
        """Nobody asks for the rest: inserts need not wait for it."""
        with self._lock:
            if self._pieces is not None:
                self._pieces.release()
            self._pieces, self._head = None, b""
            self._wake_inserts()

    def restore_piece(self, number: int, parts: tuple[bytes, ...]) -> None:
        """A piece of a stream that `end_restore` completes; taken in its turn, once."""
        self._restoring = self._restoring or self._core.restoring()
        with self._lock:
            self._restoring.take_numbered(number, join(parts))

    def end_restore(self) -> None:
        """Become what the pieces told of."""
        restoring, self._restoring = self._restoring or self._core.restoring(), None
        with self._lock:
            restoring.end()
