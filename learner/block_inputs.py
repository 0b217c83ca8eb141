"""What a run's first block starts from, made of the plan alone.

Called by the learner, which trains on from it, and by the process that compiles the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from qfleet.common.convolutions import CHANNELS_LAST_KINDS
from qfleet.common.forward import Tensors, forward_function, input_transform
from qfleet.common.network_plan import n_layer_noise
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.seeding import seed_int
from qfleet.common.types import Array, EnvironmentSpec
from qfleet.learner.losses import loss_of
from qfleet.learner.optimizers import Hyperparameters, initial_state
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.precision import in_precision, use_tf32
from qfleet.learner.update import LearnerState, UpdateRule, copy_tensors

TARGET_FORWARD_INPUTS = 4_000_000
"""Numbers in one forward of a target network that is constant within a block: 16 MB of float32. A
block of CartPole's is one forward; of 84 × 84 × 4 images it takes 141 at once."""
GPU_TARGET_FORWARD_INPUTS = 64_000_000
"""The same on a GPU, which is not busy with fewer."""


def initial_block_inputs(
    plan: LearnerPlan,
    spec: EnvironmentSpec,
    device: str,
    dtype: torch.dtype | None = None,
) -> tuple[UpdateRule, LearnerState, Hyperparameters]:
    """The rule, the seeded networks with an empty optimizer, and the rates.

    With `dtype` the network is cast to it; without, it stays as built and the rates are float32.
    """
    if torch.device(device).type == "cuda" and plan.network.is_convolutional:
        use_tf32()
    network = build_network(plan.network, spec, seed_int(plan.seed, "learner.network"))
    network.to(device=device, dtype=dtype)
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    frozen = [(n, p) for n, p in network.named_parameters() if not p.requires_grad]
    parameters, buffers = _own(trained), _own([*frozen, *network.named_buffers()])
    rule = UpdateRule(
        forward=in_precision(forward_function(network), plan.precision, device),
        inputs=input_transform(spec, dtype or torch.float32, _memory_format(plan)),
        loss=loss_of(plan, spec.n_actions),
        optimizer=plan.optimizer,
        double_q=plan.double_q,
        target_network=plan.target_network,
        polyak=plan.target_tau is not None,
        clip=plan.max_grad_norm is not None,
        n_layer_noise=n_layer_noise(plan.network, spec),
        max_target_rows=max_target_rows(spec, device),
    )
    state = LearnerState(
        parameters,
        buffers,
        copy_tensors(parameters) if plan.target_network else {},
        copy_tensors(buffers) if plan.target_network else {},
        initial_state(plan.optimizer, list(parameters.values())),
    )
    scalar = partial(torch.tensor, dtype=dtype or torch.float32, device=device)
    return rule, state, Hyperparameters(*map(scalar, plan.rates))


def first_arrays(
    plan: LearnerPlan, spec: EnvironmentSpec
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The seeded network's parameters and buffers as arrays."""
    _, state, _ = initial_block_inputs(plan, spec, "cpu")
    return to_arrays(state.parameters), to_arrays(state.buffers)


def max_target_rows(spec: EnvironmentSpec, device: str) -> int:
    """Most observations in one forward of a target network: see `UpdateRule.max_target_rows`."""
    is_on_gpu = torch.device(device).type == "cuda"
    inputs = GPU_TARGET_FORWARD_INPUTS if is_on_gpu else TARGET_FORWARD_INPUTS
    return inputs // math.prod(spec.observation_shape)


def _memory_format(plan: LearnerPlan) -> torch.memory_format:
    is_wide = plan.network.factory is None and plan.network.kind in CHANNELS_LAST_KINDS
    return torch.channels_last if is_wide else torch.contiguous_format


def _own(tensors: Iterable[tuple[str, Tensor]]) -> Tensors:
    """Contiguous copies: a layout of the network's own would be lost when a run is resumed."""
    contiguous = torch.contiguous_format
    return {name: t.detach().clone(memory_format=contiguous) for name, t in tensors}
