"""Captures within captures: an actor's state holds those of its parts and its parameters.

Called by the actor's core.
"""

from __future__ import annotations

from qfleet.common.types import Capture, ParamsSnapshot


def put_part(capture: Capture, name: str, part: Capture) -> None:
    """Put `part` into `capture` under `name`."""
    capture.meta[name] = part.meta
    for key, array in part.arrays.items():
        capture.arrays[f"{name}/{key}"] = array


def get_part(capture: Capture, name: str) -> Capture:
    """The part that `put_part` put there."""
    prefix = f"{name}/"
    arrays = {
        key.removeprefix(prefix): array
        for key, array in capture.arrays.items()
        if key.startswith(prefix)
    }
    return Capture(capture.meta[name], arrays)


def capture_snapshot(snapshot: ParamsSnapshot) -> Capture:
    """Parameters as a capture; the arrays are not copied."""
    meta = {
        "version": snapshot.version,
        "learner_step": snapshot.learner_step,
        "env_steps": snapshot.env_steps,
        "is_target_sync": snapshot.is_target_sync,
    }
    return Capture(meta, dict(snapshot.arrays))


def restore_snapshot(capture: Capture) -> ParamsSnapshot:
    """The inverse of `capture_snapshot`."""
    return ParamsSnapshot(**capture.meta, arrays=capture.arrays)
