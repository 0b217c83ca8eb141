"""A learner on a compiled block's machine code: the one way in which a package is called.

Chosen by `backends.py`. The state stays in tensors of PyTorch's C++ library, one call's results
being the next call's inputs; NumPy sees copies. No torch module is imported for the built-in
networks: a run that begins with a package does without.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qfleet.common.types import OBSERVATION, Array, ReplaySample
from qfleet.learner.backend import (
    GROUPS,
    N_MEASURED,
    Groups,
    LearnerPath,
    Measured,
    batch_columns,
)
from qfleet.learner.fast.libtorch import BlockLibrary, Libtorch, Tensor
from qfleet.learner.fast.package_spec import PackageSpec

_ALIGNMENT_BYTES = 64
"""As torch's own allocations: the same bits come out of the matrix products."""


class _Counts(NamedTuple):
    """How many tensors of each kind a state has, in the order of `flat_block.flat_state`."""

    online: int
    target: int
    first: int
    second: int

    @property
    def target_part(self) -> slice:
        return slice(self.online, self.online + self.target)


class PackageBackend:
    """See `LearnerBackend`.

    Invariants: no tensor of the state is ever written, so that online and target network may share
    them; every reference is released once.
    """

    path: LearnerPath = "compiled"

    def __init__(
        self,
        torch: Libtorch,
        library: BlockLibrary,
        spec: PackageSpec,
        parameters: dict[str, Array],
        buffers: dict[str, Array],
    ) -> None:
        plan = spec.plan
        self._torch, self._library = torch, library
        self._n_updates, self._batch_size = spec.n_updates, plan.batch_size
        self._polyak = plan.target_tau is not None
        self._names = [*parameters, *buffers]
        self._trained = list(parameters)
        n_online, n_trained = len(self._names), len(self._trained)
        self._counts = _Counts(
            n_online,
            n_online if plan.target_network else 0,
            n_trained,
            0 if plan.optimizer == "sgd" else n_trained,
        )
        self._observation = spec.observation_dtype, spec.environment.observation_shape
        self._hyper = [torch.copy(np.array(rate, np.float32)) for rate in plan.rates]
        self._state: list[Tensor] = []
        self._next: list[Tensor] = []
        self._stage: _Stage | None = None
        weakref.finalize(self, _release_all, torch, self._state, self._next, self._hyper)
        online = {**parameters, **buffers}
        zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.load(
            {
                "online": online,
                "target": online if plan.target_network else {},
                "first": zeros,
                "second": zeros if self._counts.second else {},
                "optimizer": {"step": np.zeros((), np.float64)},
            }
        )

    def run(self, sample: ReplaySample) -> Measured:
        """See `LearnerBackend`.

        Raises:
            ValueError: when the batches do not fit: the machine code checks no shapes.
        """
        extent = sample.is_weights.shape
        self._check_fits(sample)
        stage = self._stage_for(sample)
        stage.fill(sample)
        torch, counts = self._torch, self._counts
        measured = np.empty(extent, np.float32), *np.empty((3, extent[0]), np.float32)
        state = torch.again(self._state)
        for first in range(0, extent[0], self._n_updates):
            # A target that only hard syncs change is no result.
            kept = [] if self._polyak else torch.again(state[counts.target_part])
            constant = torch.again([*stage.batches(first), *self._hyper])
            results = self._library.run([*state, *constant])
            state = [*results[: counts.online], *kept, *results[counts.online : -N_MEASURED]]
            values = results[-N_MEASURED:]
            for array, tensor in zip(measured, values, strict=True):
                torch.read(tensor, array[first : first + self._n_updates])
            torch.release(values)
        self._replace(self._next, state)
        errors, *scalars = measured
        return Measured(errors.astype(np.float64), *scalars)

    def set_learning_rate(self, learning_rate: float) -> None:
        """See `LearnerBackend`."""
        new = self._torch.copy(np.array(learning_rate, np.float32))
        self._replace(self._hyper, [new, *self._torch.again(self._hyper[1:])])

    def _check_fits(self, sample: ReplaySample) -> None:
        extent, observations = sample.is_weights.shape, sample.columns[OBSERVATION]
        if extent[0] % self._n_updates or extent[1] != self._batch_size:
            raise ValueError(
                f"the package runs {self._n_updates} updates of batch {self._batch_size} per "
                f"call, got {list(extent)}"
            )
        dtype, shape = self._observation
        if observations.dtype != dtype or observations.shape[2:] != shape:
            raise ValueError(
                f"the package takes observations {dtype}{list(shape)}, "
                f"got {observations.dtype}{list(observations.shape[2:])}"
            )

    def _replace(self, held: list[Tensor], tensors: Sequence[Tensor]) -> None:
        """Hold these instead; the old ones are released."""
        old, held[:] = list(held), tensors
        self._torch.release(old)

    def accept(self) -> None:
        """See `LearnerBackend`."""
        taken, self._next[:] = list(self._next), []
        self._replace(self._state, taken)

    def sync_target(self) -> None:
        """See `LearnerBackend`."""
        counts, state = self._counts, self._state
        old = state[counts.target_part]
        state[counts.target_part] = self._torch.again(state[: counts.online])
        self._torch.release(old)

    def online(self) -> dict[str, Array]:
        """See `LearnerBackend`."""
        return self._copies(self._names, self._state)

    def target(self) -> dict[str, Array]:
        """See `LearnerBackend`."""
        return self._copies(self._names, self._state[self._counts.target_part])

    def _copies(self, names: list[str], tensors: Sequence[Tensor]) -> dict[str, Array]:
        """By name; empty where there are no tensors."""
        return {name: self._torch.array(t) for name, t in zip(names, tensors, strict=False)}

    def groups(self) -> Groups:
        """See `LearnerBackend`."""
        counts, rest = self._counts, iter(self._state)

        def taken(n: int) -> list[Tensor]:
            return [next(rest) for _ in range(n)]

        return {
            "online": self._copies(self._names, taken(counts.online)),
            "target": self._copies(self._names, taken(counts.target)),
            "first": self._copies(self._trained, taken(counts.first)),
            "second": self._copies(self._trained, taken(counts.second)),
            "optimizer": self._copies(["step"], taken(1)),
        }

    def load(self, groups: Groups) -> None:
        """See `LearnerBackend`."""
        self._replace(self._state, [self._torch.copy(array) for array in self._flat(groups)])

    def _flat(self, groups: Groups) -> Iterator[Array]:
        names = {"online": self._names, "target": self._names, "optimizer": ["step"]}
        for group in GROUPS:
            for name in names.get(group, self._trained) if groups[group] else []:
                yield groups[group][name]

    def _stage_for(self, sample: ReplaySample) -> _Stage:
        n_updates = len(sample.is_weights)
        if self._stage is None or self._stage.n_updates != n_updates:
            self._stage = _Stage(self._torch, sample, self._n_updates)
        return self._stage


def _release_all(torch: Libtorch, *held: list[Tensor]) -> None:
    for tensors in held:
        torch.release(tensors)
        tensors.clear()


class _Stage:
    """Batches in memory that is used again for the next block, and tensors over their parts."""

    def __init__(self, torch: Libtorch, like: ReplaySample, per_call: int) -> None:
        self.n_updates = len(like.is_weights)
        self._arrays = [_aligned(column.shape, dtype) for column, dtype in batch_columns(like)]
        self._parts = {
            first: [torch.view(array[first : first + per_call]) for array in self._arrays]
            for first in range(0, self.n_updates, per_call)
        }
        weakref.finalize(self, _release_all, torch, *self._parts.values())

    def fill(self, sample: ReplaySample) -> None:
        """Copy a sample's columns in."""
        for target, (source, _) in zip(self._arrays, batch_columns(sample), strict=True):
            np.copyto(target, source, casting="unsafe")

    def batches(self, first: int) -> list[Tensor]:
        """The batches from update `first` on, in the order of `update.Batches`."""
        return self._parts[first]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array whose memory begins at a multiple of `_ALIGNMENT_BYTES`."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
