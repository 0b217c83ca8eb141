"""A learner on PyTorch: eager updates, a CUDA graph, or a compiled package called through torch.

Chosen by `learner_path.starting_backend`: on a GPU, for custom networks, and where no package is
in the cache.
"""

from __future__ import annotations

import numpy as np
import torch

from qfleet.common.networks import Tensors, to_arrays
from qfleet.common.types import Array, EnvironmentSpec, ReplaySample
from qfleet.learner.backend import Groups, LearnerPath, Measured
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.fast.package_spec import PackageSpec
from qfleet.learner.fast.starting_block import load_package, starting_block
from qfleet.learner.optimizers import OptimizerState
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import Batches, BlockResult, LearnerState, copy_tensors, run_block


class TorchBackend:
    """See `LearnerBackend`.

    Raises:
        ConfigError: when `learner.compile` is `required` and there is no fast form.
    """

    def __init__(self, plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> None:
        self._device = torch.device(device)
        self._package = PackageSpec(plan, spec)
        self._rule, self._state, self._hyper = initial_block_inputs(plan, spec, self._device)
        self._next = self._state
        self._stager = BatchStager(self._device)
        self._fast = starting_block(
            self._package, self._rule, self._state, self._hyper, self._device
        )

    @property
    def path(self) -> LearnerPath:
        """See `LearnerBackend`."""
        return "eager" if self._fast is None else self._fast.path

    def take_package(self) -> bool:
        """See `LearnerBackend`."""
        self._fast = load_package(self._package, self._rule, self._state, self._hyper)
        return self._fast is not None

    def run(self, sample: ReplaySample) -> Measured:
        """See `LearnerBackend`."""
        result = self._run_block(self._stager.stage(sample))
        self._next = result.state
        return Measured(
            result.td_errors_abs.cpu().numpy().astype(np.float64),
            result.losses.cpu().numpy(),
            result.q_means.cpu().numpy(),
            result.grad_norms.cpu().numpy(),
        )

    def _run_block(self, batches: Batches) -> BlockResult:
        """On the fast path where there is one and the batches are of the configured size."""
        if self._fast is not None and self._fast.fits(batches):
            return self._fast(self._state, batches, self._hyper)
        # Training forwards update buffers in place: a refused block must not leave its NaN there.
        state = self._state._replace(buffers=copy_tensors(self._state.buffers))
        return run_block(self._rule, state, batches, self._hyper)

    def accept(self) -> None:
        """See `LearnerBackend`."""
        self._state = self._next

    def sync_target(self) -> None:
        """See `LearnerBackend`."""
        self._state = self._state._replace(
            target_parameters=copy_tensors(self._state.parameters),
            target_buffers=copy_tensors(self._state.buffers),
        )

    def online(self) -> dict[str, Array]:
        """See `LearnerBackend`."""
        return to_arrays({**self._state.parameters, **self._state.buffers})

    def target(self) -> dict[str, Array]:
        """See `LearnerBackend`."""
        return to_arrays({**self._state.target_parameters, **self._state.target_buffers})

    def groups(self) -> Groups:
        """See `LearnerBackend`."""
        optimizer, names = self._state.optimizer, list(self._state.parameters)
        return {
            "online": self.online(),
            "target": self.target(),
            "first": to_arrays(dict(zip(names, optimizer.first, strict=False))),
            "second": to_arrays(dict(zip(names, optimizer.second, strict=False))),
            "optimizer": to_arrays({"step": optimizer.step}),
        }

    def load(self, groups: Groups) -> None:
        """See `LearnerBackend`."""
        state, names = self._state, list(self._state.parameters)

        def tensors(group: str, wanted: Tensors | list[str]) -> Tensors:
            arrays = groups[group]
            return {
                name: torch.from_numpy(np.array(arrays[name])).to(self._device) for name in wanted
            }

        second = tensors("second", names if state.optimizer.second else [])
        self._state = LearnerState(
            tensors("online", state.parameters),
            tensors("online", state.buffers),
            tensors("target", state.target_parameters),
            tensors("target", state.target_buffers),
            OptimizerState(
                list(tensors("first", names).values()),
                list(second.values()),
                tensors("optimizer", ["step"])["step"],
            ),
        )
