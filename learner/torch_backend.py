"""A learner on PyTorch: eager updates, or another form of the block with the same arguments.

Chosen by `fast/backends.py`; `fast/cuda_graph.py` brings the other form.
"""

from __future__ import annotations

import numpy as np
import torch

from qfleet.common.forward import Tensors
from qfleet.common.networks import to_arrays
from qfleet.common.types import Array, EnvironmentSpec, ReplaySample
from qfleet.learner.backend import Groups, LearnerPath, Measured
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.block_inputs import initial_block_inputs
from qfleet.learner.optimizers import Hyperparameters, OptimizerState
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import BlockFunction, LearnerState, copy_tensors, eager_block


def eager_backend(plan: LearnerPlan, spec: EnvironmentSpec, device: str) -> TorchBackend:
    """A learner at its start on `device`, without any fast form."""
    rule, state, hyper = initial_block_inputs(plan, spec, device)
    return TorchBackend(eager_block(rule), "eager", state, hyper)


class TorchBackend:
    """See `LearnerBackend`."""

    def __init__(
        self, block: BlockFunction, path: LearnerPath, state: LearnerState, hyper: Hyperparameters
    ) -> None:
        self.path = path
        self._block = block
        self._state = self._next = state
        self._hyper = hyper
        self._device = hyper.learning_rate.device
        self._stager = BatchStager(self._device)

    def run(self, sample: ReplaySample) -> Measured:
        """See `LearnerBackend`."""
        result = self._block(self._state, self._stager.stage(sample), self._hyper)
        self._next = result.state
        return Measured(
            result.td_errors_abs.cpu().numpy().astype(np.float64),
            result.losses.cpu().numpy(),
            result.q_means.cpu().numpy(),
            result.grad_norms.cpu().numpy(),
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """See `LearnerBackend`."""
        old = self._hyper.learning_rate
        self._hyper = self._hyper._replace(learning_rate=torch.full_like(old, learning_rate))

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
