"""Whether a learner keeps the shards' frames on its device; draws then name them by place.

Called by the local runtime and the learner's Ray shell. No torch here unless there is a GPU: a
learner on a compiled block does without.
"""

from __future__ import annotations

from qfleet.learner.fast.notices import say_once


def keeps_frames(device: str, n_bytes: int) -> bool:
    """Whether `n_bytes` of frames are to lie on `device`, which is said.

    On a GPU whose free memory allows it. A CPU's learner is given whole stacks: gathering them
    itself costs it what their way costs (docs/games.md, "Speed over Ray"), and frames lie twice.
    """
    if device == "cpu" or not n_bytes:
        return False
    from qfleet.learner.device_frames import has_room

    keeps = has_room(device, n_bytes)
    if keeps:
        say_once(
            f"frames are kept on {device} ({n_bytes / 2**30:.2f} GiB), not sent with every draw"
        )
    return keeps
