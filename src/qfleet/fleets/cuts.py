"""A cut through the learner and every shard: taken, put back, or begun with other parameters.

Called by both schedules over Ray, with the roles' handles. The bytes pass through the driver, so
that roles on other hosts need no shared disk; it never holds more of a shard than the pieces on
their way.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qfleet.cluster.roles import Roles, answer
from qfleet.common.capture_stream import Streams, pieces_of, restoring
from qfleet.common.inline_pieces import join, split
from qfleet.common.messages import encode_snapshot
from qfleet.common.types import Array, ParamsSnapshot
from qfleet.common.wire import decode_parts

PIECES_IN_FLIGHT = 2
PARTS = 9
"""A piece travels inside its call in so many parts: the object store's pages would stay mapped."""


def capture_learner_and_replay(roles: Roles, replay_contents: bool) -> Streams:
    """The learner now, frozen between two blocks; each shard when its stream is begun.

    Shards are independent of one another, so their moments may differ; one that had to wait for its
    turn would only keep rows that are overwritten meanwhile.
    """
    ref = roles.learner.capture.remote()
    parts = answer(ref, "driver", "the learner's state")
    files: Streams = {f"{name}.qflt": [data] for name, data in decode_parts(parts).items()}
    for index, shard in enumerate(roles.shards):
        who = f"replay shard {index}'s state"
        files[f"replay-{index}.qflt"] = _pull_frozen(shard, replay_contents, who)
    return files


def _pull_frozen(shard: Any, contents: bool, who: str) -> Iterator[bytes]:
    """A shard's state as of the first `next`, pulled piece by piece with two on their way."""
    head = answer(shard.freeze.remote(contents), "driver", who)
    next_piece = shard.next_piece.options(num_returns=1 + PARTS)
    waiting = collections.deque(next_piece.remote(PARTS) for _ in range(PIECES_IN_FLIGHT))
    early: dict[int, bytes] = {}
    n_given = 0
    try:
        yield head
        while waiting:
            number, *parts = answer(waiting.popleft(), "driver", who)
            if parts[0] is not None:
                waiting.append(next_piece.remote(PARTS))
                early[number] = join(parts)
            while n_given in early:
                yield early.pop(n_given)
                n_given += 1
    except BaseException:
        # A full disk, for example: inserts must not wait for a reader that has gone.
        shard.drop_frozen.remote()
        raise


def init_learner_params(roles: Roles, arrays: dict[str, Array]) -> None:
    """Give the learner another run's parameters before it starts."""
    data = encode_snapshot(ParamsSnapshot(0, 0, 0, False, arrays))
    answer(roles.learner.init_params.remote(data), "driver", "the learner to take parameters")


def restore_learner_and_replay(roles: Roles, files: Mapping[str, memoryview]) -> None:
    """The inverse of `capture_learner_and_replay`, from a checkpoint's mapped files."""
    ref = roles.learner.restore.remote(bytes(files["learner.qflt"]), bytes(files["planner.qflt"]))
    answer(ref, "driver", "the learner to restore")
    for index, shard in enumerate(roles.shards):
        who = f"replay shard {index} to restore"
        _push(shard, _pieces(files, f"replay-{index}.qflt"), who)


def _pieces(files: Mapping[str, memoryview], name: str) -> Iterator[memoryview]:
    with restoring(name):
        yield from pieces_of(files[name])


def _push(shard: Any, pieces: Iterable[memoryview], who: str) -> None:
    waiting: collections.deque[Any] = collections.deque()
    for number, piece in enumerate(pieces):
        waiting.append(shard.restore_piece.remote(number, *split(bytes(piece), PARTS)))
        if len(waiting) >= PIECES_IN_FLIGHT:
            answer(waiting.popleft(), "driver", who)
    for ref in waiting:
        answer(ref, "driver", who)
    answer(shard.end_restore.remote(), "driver", who)
