"""What a run's first block starts from, made of the plan alone.

Called by the learner, which trains on from it, and by the process that compiles the block.
"""

from __future__ import annotations

from functools import partial

import torch

from qfleet.common.networks import build_network, forward_function
from qfleet.common.seeding import seed_int
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.optimizers import Hyperparameters, initial_state
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.update import LearnerState, UpdateRule, copy_tensors


def initial_block_inputs(
    plan: LearnerPlan,
    spec: EnvironmentSpec,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> tuple[UpdateRule, LearnerState, Hyperparameters]:
    """The rule, the seeded networks with an empty optimizer, and the rates.

    With `dtype` the network is cast to it; without, it stays as built and the rates are float32.
    """
    network = build_network(plan.network, spec, seed_int(plan.seed, "learner.network"))
    network.to(device=device, dtype=dtype)
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    frozen = [(n, p) for n, p in network.named_parameters() if not p.requires_grad]
    parameters = {n: p.detach().clone() for n, p in trained}
    buffers = {n: b.detach().clone() for n, b in [*frozen, *network.named_buffers()]}
    rule = UpdateRule(
        forward=forward_function(network),
        loss=plan.loss,
        optimizer=plan.optimizer,
        double_q=plan.double_q,
        target_network=plan.target_network,
        polyak=plan.target_tau is not None,
        clip=plan.max_grad_norm is not None,
    )
    state = LearnerState(
        parameters,
        buffers,
        copy_tensors(parameters) if plan.target_network else {},
        copy_tensors(buffers) if plan.target_network else {},
        initial_state(plan.optimizer, list(parameters.values())),
    )
    values = (
        plan.learning_rate,
        plan.momentum,
        plan.target_tau or 0.0,
        plan.max_grad_norm or 0.0,
        plan.huber_delta,
    )
    scalar = partial(torch.tensor, dtype=dtype or torch.float32, device=device)
    return rule, state, Hyperparameters(*(scalar(value) for value in values))
