"""The columns of a transition as chunks carry and shards hold them.

The learner gets whole stacks; on the way to it a stack is K numbers of frames that are kept once.
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


def stored_columns(spec: EnvironmentSpec) -> tuple[ColumnSpec, ...]:
    """`transition_columns`, with frame numbers `[K]` in place of stacks `[K, H, W]`."""
    if spec.frame_stack is None:
        return transition_columns(spec)
    stacks = (OBSERVATION, NEXT_OBSERVATION)
    return tuple(
        ColumnSpec(column.name, FRAME_NUMBER_DTYPE, (spec.frame_stack,))
        if column.name in stacks
        else column
        for column in transition_columns(spec)
    )


def frame_shape(spec: EnvironmentSpec) -> tuple[int, ...]:
    """[H, W] of one frame of a stacked observation."""
    return spec.observation_shape[1:]
