"""The driver's side of a cut in pieces, with shards that answer as they like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qfleet.cluster import answers
from qfleet.common.capture_stream import encode_capture, messages
from qfleet.common.errors import CallLostError
from qfleet.common.inline_pieces import join, split
from qfleet.common.types import Capture
from qfleet.fleets import cuts

STREAM = b"".join(encode_capture(Capture({"x": 1}, {"a": np.arange(1000.0)}), 800))


class FakeShard:
    """Gives a stream out by number, losing the first answer to some, and takes one back."""

    def __init__(self) -> None:
        self.head, *self.rest = map(bytes, messages(STREAM))
        self.lost = {0, 2}
        self.dropped = 0
        self.taken: dict[int, bytes] = {}
        self.ended_with: int | None = None
        self.frozen: list[int] = []
        self.freeze = SimpleNamespace(remote=self._freeze)
        self.next_piece = SimpleNamespace(
            options=lambda num_returns: SimpleNamespace(remote=self._next)
        )
        self.drop_frozen = SimpleNamespace(remote=self._drop)
        self.restore_piece = SimpleNamespace(remote=self._restore)
        self.end_restore = SimpleNamespace(remote=self._end)

    def _freeze(self, contents: bool, cut: int) -> Any:
        self.frozen.append(cut)
        return lambda: self.head

    def _next(self, number: int, n_parts: int) -> Any:
        def answer() -> list[Any]:
            if number in self.lost:
                self.lost.discard(number)
                raise CallLostError("the call was lost")
            if number >= len(self.rest):
                return [None] * n_parts
            return list(split(self.rest[number], n_parts))

        return answer

    def _drop(self) -> None:
        self.dropped += 1

    def _restore(self, number: int, *parts: bytes) -> Any:
        self.taken[number] = join(parts)
        return lambda: None

    def _end(self) -> Any:
        self.ended_with = len(self.taken)
        return lambda: None


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> FakeShard:
    monkeypatch.setattr(cuts, "answer", lambda ref, *_: ref())
    monkeypatch.setattr(answers, "answer", lambda ref, *_: ref())
    monkeypatch.setattr(answers, "_answered", lambda calls, timeout_s: list(calls))
    return FakeShard()


def test_piece_whose_answer_was_lost_is_asked_for_again(shard: FakeShard) -> None:
    assert b"".join(cuts._pull_frozen(shard, True, "a shard")) == STREAM
    assert shard.lost == set()
    assert shard.dropped == 1
    assert b"".join(cuts._pull_frozen(shard, True, "a shard")) == STREAM
    assert shard.frozen[1] == shard.frozen[0] + 1


@pytest.mark.parametrize("n_read", [1, 2, 5])
def test_reader_that_stops_early_lets_the_shard_go_on(shard: FakeShard, n_read: int) -> None:
    pieces = cuts._pull_frozen(shard, True, "a shard")
    for _ in range(n_read):
        next(pieces)

    pieces.close()  # as a full disk does

    assert shard.dropped == 1


def test_pushed_pieces_are_numbered_and_all_there_before_the_end(
    shard: FakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts._push(shard, [memoryview(part) for part in (shard.head, *shard.rest)], "a shard")

    assert b"".join(shard.taken[number] for number in sorted(shard.taken)) == STREAM
    assert shard.ended_with == 1 + len(shard.rest)
