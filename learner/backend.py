"""What computes a learner's updates, as the learner sees it: arrays in, arrays out.

`torch_backend.py` computes with PyTorch; `fast/` holds the fast forms and chooses among all of
them (`fast/backends.py`). No torch here: most processes never import it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np

from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    ReplaySample,
)

LearnerPath = Literal["eager", "compiled", "cuda graph"]
"""How blocks are computed; `learner_path` of a run's summary."""

FLOAT32_TOLERANCE = 1e-3
"""Largest relative distance from eager after one call in float32; rounding gives about 1e-6."""

Groups = dict[str, dict[str, Array]]
"""A learner's arrays: `online` and `target` network, parameters before buffers; the optimizer's
`first` and `second` slot under the parameters' names; `optimizer` with its `step`."""

GROUPS = ("online", "target", "first", "second", "optimizer")


class Measured(NamedTuple):
    """What K updates measured."""

    td_errors_abs: Array
    """float64 [K, B]."""
    losses: Array
    """float32 [K], as the others below."""
    q_means: Array
    grad_norms: Array


N_MEASURED = len(Measured._fields)


def batch_columns(sample: ReplaySample) -> list[tuple[Array, np.dtype]]:
    """A sample's columns in the order of `update.Batches`, and the dtype each has there.

    Observations stay as they are stored.
    """
    columns = sample.columns
    observation, next_observation = columns[OBSERVATION], columns[NEXT_OBSERVATION]
    single = np.dtype(np.float32)
    noise = [] if sample.noise is None else [(sample.noise, single)]
    return [
        (observation, observation.dtype),
        (columns[ACTION], np.dtype(np.int64)),
        (columns[N_STEP_RETURN], single),
        (columns[BOOTSTRAP_DISCOUNT], single),
        (next_observation, next_observation.dtype),
        (sample.is_weights, single),
        *noise,
    ]


class LearnerBackend(Protocol):
    """Networks and optimizer of one learner; owned by its thread."""

    @property
    def path(self) -> LearnerPath:
        """How the next block is computed."""
        ...

    def run(self, sample: ReplaySample) -> Measured:
        """K updates, one after the other; in force only after `accept`."""
        ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """The step size from the next `run` on."""
        ...

    def accept(self) -> None:
        """Go on from what the last `run` led to."""
        ...

    def sync_target(self) -> None:
        """The target network becomes the online network, buffers included."""
        ...

    def online(self) -> dict[str, Array]:
        """Copies of the online network's parameters and buffers."""
        ...

    def target(self) -> dict[str, Array]:
        """The same of the target network; empty without one."""
        ...

    def groups(self) -> Groups:
        """Copies of everything."""
        ...

    def load(self, groups: Groups) -> None:
        """Go on from these, which have the names, shapes and dtypes of `groups()`.

        They may be another backend's: `new.load(old.groups())` swaps what computes.
        """
        ...
