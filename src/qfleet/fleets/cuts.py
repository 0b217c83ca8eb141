"""A cut through the learner and every shard: taken, put back, or begun with other parameters.

Called by both schedules over Ray, with the roles' handles.
"""

from __future__ import annotations

import collections
from typing import Any

from qfleet.cluster.roles import Roles, answer
from qfleet.common.messages import encode_snapshot
from qfleet.common.types import Array, ParamsSnapshot
from qfleet.common.wire import decode_parts

CAPTURE_TIMEOUT_S = 600.0
PIECES_IN_FLIGHT = 2


def capture_learner_and_replay(roles: Roles, replay_contents: bool) -> dict[str, bytes]:
    """The learner first, frozen between two blocks, then every shard."""
    ref = roles.learner.capture.remote()
    parts = answer(ref, "driver", "the learner's state", CAPTURE_TIMEOUT_S)
    files = {f"{name}.qflt": data for name, data in decode_parts(parts).items()}
    refs = [shard.freeze.remote(replay_contents) for shard in roles.shards]
    for index, (shard, ref) in enumerate(zip(roles.shards, refs, strict=True)):
        who = f"replay shard {index}'s state"
        answer(ref, "driver", who, CAPTURE_TIMEOUT_S)
        files[f"replay-{index}.qflt"] = _pull_frozen(shard, who)
    return files


def _pull_frozen(shard: Any, who: str) -> bytes:
    """What a shard has frozen, pulled piece by piece with two on their way."""
    pieces: list[bytes] = []
    waiting = collections.deque(shard.next_piece.remote() for _ in range(PIECES_IN_FLIGHT))
    while waiting:
        piece = answer(waiting.popleft(), "driver", who, CAPTURE_TIMEOUT_S)
        if piece is not None:
            pieces.append(piece)
            waiting.append(shard.next_piece.remote())
    *body, header = pieces
    return b"".join([header, *body])


def init_learner_params(roles: Roles, arrays: dict[str, Array]) -> None:
    """Give the learner another run's parameters before it starts."""
    data = encode_snapshot(ParamsSnapshot(0, 0, 0, False, arrays))
    answer(roles.learner.init_params.remote(data), "driver", "the learner to take parameters")


def restore_learner_and_replay(roles: Roles, files: dict[str, bytes]) -> None:
    """The inverse of `capture_learner_and_replay`."""
    ref = roles.learner.restore.remote(files["learner.qflt"], files["planner.qflt"])
    answer(ref, "driver", "the learner to restore", CAPTURE_TIMEOUT_S)
    refs = [
        shard.restore.remote(files[f"replay-{index}.qflt"])
        for index, shard in enumerate(roles.shards)
    ]
    for index, shard_ref in enumerate(refs):
        answer(shard_ref, "driver", f"replay shard {index} to restore", CAPTURE_TIMEOUT_S)
