"""A cut through the learner and every shard: taken, put back, or begun with other parameters.

Called by both schedules over Ray, with the roles' handles. The bytes pass through the driver, so
that roles on other hosts need no shared disk; it never holds more of a shard than the pieces on
their way.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from qfleet.cluster.answers import answer, ask, new_patience
from qfleet.cluster.roles import Roles
from qfleet.common.capture_stream import Streams, pieces_of, restoring
from qfleet.common.inline_pieces import join, split
from qfleet.common.messages import encode_snapshot
from qfleet.common.types import Array, ParamsSnapshot
from qfleet.common.wire import decode_parts

PIECES_IN_FLIGHT = 2
PARTS = 9
"""A piece travels inside its call in so many parts: the object store's pages would stay mapped."""
FIRST_PIECE_S = 0.2
"""A first piece that is later is asked for again: the run's end may wait for the end of a cut."""
_cut_numbers = itertools.count(1)


def capture_learner_and_replay(roles: Roles, replay_contents: bool) -> Streams:
    """The learner now, frozen between two blocks; each shard when its stream is begun.

    Shards are independent of one another, so their moments may differ; one that had to wait for its
    turn would only keep rows that are overwritten meanwhile.
    """
    capture, patience = roles.learner.capture.remote, roles.capture_patience
    parts = ask(capture, "driver", "the learner's state", patience=patience)
    files: Streams = {f"{name}.qflt": [data] for name, data in decode_parts(parts).items()}
    for index, shard in enumerate(roles.shards):
        who = f"replay shard {index}'s state"
        files[f"replay-{index}.qflt"] = _pull_frozen(shard, replay_contents, who)
    return files


def _pull_frozen(shard: Any, contents: bool, who: str) -> Iterator[bytes]:
    """A shard's state as of the first `next`, pulled piece by piece with two on their way."""
    cut, patience = next(_cut_numbers), new_patience(FIRST_PIECE_S)
    head = ask(lambda: shard.freeze.remote(contents, cut), "driver", who, patience=patience)
    try:
        yield head
        # By number, so that one whose answer was lost is given out again.
        calls = (partial(_call_for_piece, shard, number) for number in itertools.count())
        waiting = collections.deque((c, c()) for c in itertools.islice(calls, PIECES_IN_FLIGHT))
        while waiting:
            call, ref = waiting.popleft()
            parts = ask(call, "driver", who, first=ref, patience=patience)
            if parts[0] is not None:
                call = next(calls)
                waiting.append((call, call()))
                yield join(parts)
    finally:
        # Also when the disk was full: inserts must not wait for a reader that has gone.
        shard.drop_frozen.remote()


def _call_for_piece(shard: Any, number: int) -> Any:
    return shard.next_piece.options(num_returns=PARTS).remote(number, PARTS)


def init_learner_params(roles: Roles, arrays: dict[str, Array]) -> None:
    """Give the learner another run's parameters before it starts."""
    data = encode_snapshot(ParamsSnapshot(0, 0, 0, False, arrays))
    call = partial(roles.learner.init_params.remote, data)
    ask(call, "driver", "the learner to take parameters")


def restore_learner_and_replay(roles: Roles, files: Mapping[str, memoryview]) -> None:
    """The inverse of `capture_learner_and_replay`, from a checkpoint's mapped files."""
    states = [bytes(files[f"{name}.qflt"]) for name in ("learner", "planner")]
    ask(partial(roles.learner.restore.remote, *states), "driver", "the learner to restore")
    for index in range(len(roles.shards)):
        restore_shard(roles, index, files)


def restore_shard(roles: Roles, index: int, files: Mapping[str, memoryview]) -> None:
    """Give one shard its rows, sampler and ledger of a cut; it must be new."""
    who = f"replay shard {index} to restore"
    _push(roles.shards[index], _pieces(files, f"replay-{index}.qflt"), who)


def _pieces(files: Mapping[str, memoryview], name: str) -> Iterator[memoryview]:
    with restoring(name):
        yield from pieces_of(files[name])


def _push(shard: Any, pieces: Iterable[memoryview], who: str) -> None:
    waiting: collections.deque[Any] = collections.deque()
    for number, piece in enumerate(pieces):
        call = partial(shard.restore_piece.remote, number, *split(bytes(piece), PARTS))
        waiting.append((call, call()))
        if len(waiting) >= PIECES_IN_FLIGHT:
            call, ref = waiting.popleft()
            ask(call, "driver", who, first=ref)
    for call, ref in waiting:
        ask(call, "driver", who, first=ref)
    # Not twice: the second one would restore nothing.
    answer(shard.end_restore.remote(), "driver", who)
