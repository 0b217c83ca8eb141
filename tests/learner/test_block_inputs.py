"""What a run's first block starts from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.common.networks import build_network
from qfleet.common.types import EnvironmentSpec
from qfleet.learner.block_inputs import (
    TARGET_FORWARD_INPUTS,
    first_arrays,
    initial_block_inputs,
    max_target_rows,
)
from qfleet.learner.plan import LearnerPlan
from qfleet.learner.precision import use_tf32
from qfleet.learner.update import Batches, run_block
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
BYTES = replace(SPEC, observation_shape=(84 * 84 * 4,), observation_dtype="|u1")
PLANES = replace(SPEC, observation_shape=(4, 10, 10), observation_dtype="|u1")


def plan_of(**network: Any) -> LearnerPlan:
    config = Config(network=network, learner={"device": "cpu", "loss": "mse"})
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


class LaidOutOtherwise(nn.Module):
    """Its weight is a transposed view, which no array from a checkpoint is."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(8.0).reshape(n_inputs, n_actions).T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def test_state_is_contiguous_however_the_network_lays_it_out() -> None:
    """So that a resumed run, whose tensors come from arrays, has the same."""
    plan = plan_of(factory=f"{__name__}:LaidOutOtherwise")
    network = build_network(plan.network, SPEC, 0)
    assert not network.weight.is_contiguous()
    _, state, _ = initial_block_inputs(plan, SPEC, "cpu")
    for tensors in (state.parameters, state.target_parameters):
        assert tensors["weight"].is_contiguous()
        assert torch.equal(tensors["weight"], network.weight)
    arrays, buffers = first_arrays(plan, SPEC)
    assert np.array_equal(arrays["weight"], [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert buffers == {}


@pytest.mark.parametrize(("distribution", "width"), [("none", 2), ("c51", 10), ("qr", 10)])
def test_head_is_as_wide_as_the_distribution_says(distribution: str, width: int) -> None:
    network = {"distribution": distribution, "value_min": 0, "value_max": 1, "hidden_sizes": (8,)}
    if distribution != "none":
        network["atoms"] = 5
    config = Config(network=network, learner={"device": "cpu"})
    plan = run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner
    _, state, _ = initial_block_inputs(plan, SPEC, "cpu")
    assert list(state.parameters.values())[-1].shape == (width,)


def test_rule_makes_numbers_of_bytes_and_bounds_the_rows_of_a_target_forward() -> None:
    rule, _, _ = initial_block_inputs(plan_of(), SPEC, "cpu")
    assert rule.max_target_rows == TARGET_FORWARD_INPUTS // 4
    rule, _, hyper = initial_block_inputs(plan_of(), BYTES, "cpu", torch.float64)
    assert rule.max_target_rows == 141
    inputs = rule.inputs(torch.ones(3, 84 * 84 * 4, dtype=torch.uint8))
    assert (inputs.shape, inputs.dtype) == ((3, 84 * 84 * 4), torch.float64)
    rule, _, _ = initial_block_inputs(plan_of(kind="minatar"), PLANES, "cpu")
    inputs = rule.inputs(torch.full((3, 4, 10, 10), 2, dtype=torch.uint8))
    assert torch.equal(inputs, torch.full((3, 4, 10, 10), 2.0))  # no division: 0 and 1 are planes
    assert rule.max_target_rows == TARGET_FORWARD_INPUTS // 400
    assert hyper.learning_rate.dtype == torch.float64


def test_a_gpu_values_more_rows_at_once() -> None:
    frames = EnvironmentSpec("frames", (8, 84, 84), "|u1", 2, None, None, frame_stack=8)
    assert max_target_rows(frames, "cpu") == 70  # 4 M numbers
    assert max_target_rows(frames, "cuda:0") == 1133  # 64 M


def test_matrix_products_on_a_gpu_are_tf32_and_a_cpus_run_asks_for_nothing() -> None:
    products = torch.backends.cuda.matmul
    former, products.allow_tf32 = products.allow_tf32, False
    try:
        spec = EnvironmentSpec("frames", (4, 84, 84), "|u1", 2, None, None, frame_stack=4)
        initial_block_inputs(plan_of(kind="nature"), spec, "cpu")
        assert not products.allow_tf32
        use_tf32()
        assert products.allow_tf32
    finally:
        products.allow_tf32 = former


@pytest.mark.parametrize(
    ("kind", "is_last"), [("convnet", True), ("nature", True), ("tiny", False)]
)
def test_wide_convolutions_take_frames_with_their_channels_beside_each_other(kind, is_last):
    spec = EnvironmentSpec("frames", (4, 84, 84), "|u1", 2, None, None, frame_stack=4)
    rule, state, hyper = initial_block_inputs(plan_of(kind=kind), spec, "cpu")
    frames = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    inputs = rule.inputs(frames)
    assert inputs.is_contiguous(memory_format=torch.channels_last) == is_last
    assert torch.equal(inputs, frames.float() / 255)
    n = torch.zeros(1, 3)
    batches = Batches(frames[None], n.long(), n, n, frames[None], n + 1)
    new = run_block(rule, state, batches, hyper).state
    assert all(p.is_contiguous() for p in [*new.parameters.values(), *new.optimizer.first])
