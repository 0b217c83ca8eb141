"""A learner on a compiled block's machine code alone: neither torch nor a graph is imported.

Chosen by `learner_path.starting_backend`. The state stays in tensors of PyTorch's C++ library, one
call's results being the next call's inputs; NumPy sees copies.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qfleet.common.seeding import seed_int
from qfleet.common.types import (
    ACTION,
    BOOTSTRAP_DISCOUNT,
    N_STEP_RETURN,
    NEXT_OBSERVATION,
    OBSERVATION,
    Array,
    EnvironmentSpec,
    ReplaySample,
)
from qfleet.learner.backend import FLOAT32_TOLERANCE, GROUPS, Groups, LearnerPath, Measured
from qfleet.learner.fast.initial_network import initial_network
from qfleet.learner.fast.libtorch import BlockLibrary, Libtorch, Tensor, libtorch
from qfleet.learner.fast.notices import say_once
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key
from qfleet.learner.fast.package_spec import PROOF_SUFFIX, PackageError, PackageSpec
from qfleet.learner.plan import LearnerPlan

_ALIGNMENT_BYTES = 64
"""As torch's own allocations: the same bits come out of the matrix products."""
_N_MEASURED = len(Measured._fields)
"""Results behind the state: TD errors, losses, mean Q-values, gradient norms."""


def load_package_backend(plan: LearnerPlan, spec: EnvironmentSpec) -> PackageBackend | None:
    """A learner at its start on the package in the cache; None when there is none.

    A package that is damaged or gives other results than its proof says is removed, which is said.
    One that cannot be used without torch is left to it, which is said too.
    """
    package_spec = PackageSpec(plan, spec)
    parameters, buffers = initial_network(
        plan.network, spec, seed_int(plan.seed, "learner.network")
    )
    package_cache = PackageCache(cache_directory())
    key = package_key(package_spec.describe(parameters, buffers))
    path = package_cache.find_or_remove(key)
    if path is None:
        return None
    try:
        torch = libtorch()
        torch.set_num_threads(math.ceil(plan.num_cpus))
        library = BlockLibrary(path)
        distance = distance_from_proof(torch, library, path.with_suffix(PROOF_SUFFIX))
    except PackageError as error:
        say_once(f"the compiled block is called through torch: {error}")
        return None
    if not distance <= FLOAT32_TOLERANCE:
        package_cache.remove(key, f"differs from eager PyTorch by {distance:.1e}")
        return None
    return PackageBackend(torch, library, package_spec, parameters, buffers)


def distance_from_proof(torch: Libtorch, library: BlockLibrary, proof: Path) -> float:
    """Largest relative distance of a package's results from those that the eager form gave.

    Raises:
        PackageError: when there is no proof or it is for other inputs.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(proof)
    except (OSError, SafetensorError) as error:
        raise PackageError(f"the package has no readable proof: {error}") from error
    inputs, expected = (
        [arrays[name] for name in sorted(arrays) if name.startswith(kind)]
        for kind in ("input/", "result/")
    )
    if (len(inputs), len(expected)) != (library.n_inputs, library.n_outputs):
        raise PackageError(f"the proof has {len(inputs)} inputs and {len(expected)} results")
    results = library.run([torch.copy(array) for array in inputs])
    got = [torch.array(tensor) for tensor in results]
    torch.release(results)
    return max(_relative_distance(a, b) for a, b in zip(expected, got, strict=True))


def _relative_distance(expected: Array, got: Array) -> float:
    """Largest difference over the array's largest magnitude; infinite where one is not finite."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return math.inf
    if not expected.size:
        return 0.0
    scale = max(float(np.abs(expected).max()), 1e-12)
    distance = float(np.abs(expected.astype(np.float64) - got).max()) / scale
    return distance if math.isfinite(distance) else math.inf


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
        rates = (
            *(plan.learning_rate, plan.momentum, plan.target_tau or 0.0),
            *(plan.max_grad_norm or 0.0, plan.huber_delta),
        )
        self._hyper = [torch.copy(np.array(rate, np.float32)) for rate in rates]
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
        if extent[0] % self._n_updates or extent[1] != self._batch_size:
            raise ValueError(
                f"the package runs {self._n_updates} updates of batch {self._batch_size} per "
                f"call, got {list(extent)}"
            )
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
            state = [*results[: counts.online], *kept, *results[counts.online : -_N_MEASURED]]
            values = results[-_N_MEASURED:]
            for array, tensor in zip(measured, values, strict=True):
                torch.read(tensor, array[first : first + self._n_updates])
            torch.release(values)
        self._replace(self._next, state)
        errors, *scalars = measured
        return Measured(errors.astype(np.float64), *scalars)

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

    def take_package(self) -> bool:
        """See `LearnerBackend`."""
        return True

    def _stage_for(self, sample: ReplaySample) -> _Stage:
        shape = sample.columns[OBSERVATION].shape
        if self._stage is None or self._stage.shape != shape:
            self._stage = _Stage(self._torch, shape, self._n_updates)
        return self._stage


def _release_all(torch: Libtorch, *held: list[Tensor]) -> None:
    for tensors in held:
        torch.release(tensors)
        tensors.clear()


class _Stage:
    """Batches in memory that is used again for the next block, and tensors over their parts."""

    def __init__(self, torch: Libtorch, shape: tuple[int, ...], n_updates: int) -> None:
        self.shape = shape
        """Of the observations, `[K, B, *O]`."""
        extent = shape[:2]
        self._observations, self._next_observations = _aligned(shape), _aligned(shape)
        self._actions = _aligned(extent, np.int64)
        self._returns, self._discounts, self._weights = (_aligned(extent) for _ in range(3))
        flat = (*extent, math.prod(shape[2:]))
        columns = (
            self._observations.reshape(flat),
            *(self._actions, self._returns, self._discounts),
            self._next_observations.reshape(flat),
            self._weights,
        )
        self._parts = {
            first: [torch.view(column[first : first + n_updates]) for column in columns]
            for first in range(0, extent[0], n_updates)
        }
        weakref.finalize(self, _release_all, torch, *self._parts.values())

    def fill(self, sample: ReplaySample) -> None:
        """Copy a sample's columns in."""
        columns = sample.columns
        for target, source in (
            (self._observations, columns[OBSERVATION]),
            (self._actions, columns[ACTION]),
            (self._returns, columns[N_STEP_RETURN]),
            (self._discounts, columns[BOOTSTRAP_DISCOUNT]),
            (self._next_observations, columns[NEXT_OBSERVATION]),
            (self._weights, sample.is_weights),
        ):
            np.copyto(target, source, casting="unsafe")

    def batches(self, first: int) -> list[Tensor]:
        """The batches from update `first` on, in the order of `update.Batches`."""
        return self._parts[first]


def _aligned(shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> Array:
    """An array whose memory begins at a multiple of `_ALIGNMENT_BYTES`."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
