"""The columns of a transition as chunks carry and shards hold them.

The learner gets whole stacks; on the way to it a stack is K numbers of frames that are kept once.
In a chunk they are its actor's own count, in a shard the frames' places in memory.
"""

from __future__ import annotations

from qfleet.common.types import (
    NEXT_OBSERVATION,
    OBSERVATION,
    ColumnSpec,
    EnvironmentSpec,
    transition_columns,
)

FRAME_NUMBER_DTYPE = "<i8"
PLACE_DTYPE = "<i4"
"""Half the bytes: an actor never stops counting, but memory ends."""
STACKS = (OBSERVATION, NEXT_OBSERVATION)
"""The columns that numbers or places stand for."""


def stored_columns(
    spec: EnvironmentSpec, number_dtype: str = FRAME_NUMBER_DTYPE
) -> tuple[ColumnSpec, ...]:
    """`transition_columns`, with frame numbers `[K]` in place of stacks `[K, H, W]`."""
    if spec.frame_stack is None:
        return transition_columns(spec)
    return tuple(
        ColumnSpec(column.name, number_dtype, (spec.frame_stack,))
        if column.name in STACKS
        else column
        for column in transition_columns(spec)
    )


def held_columns(spec: EnvironmentSpec) -> tuple[ColumnSpec, ...]:
    """`stored_columns` of a shard, whose numbers are places."""
    return stored_columns(spec, PLACE_DTYPE)


def frame_shape(spec: EnvironmentSpec) -> tuple[int, ...]:
    """[H, W] of one frame of a stacked observation."""
    return spec.observation_shape[1:]
