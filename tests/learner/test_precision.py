"""bfloat16 rounds convolutions and hidden layers only; `auto` takes what the clock says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.common.config import NetworkConfig
from qfleet.common.forward import forward_function
from qfleet.common.networks import build_network
from qfleet.common.types import EnvironmentSpec
from qfleet.learner import precision_choice
from qfleet.learner.precision import in_precision
from qfleet.learner.precision_choice import faster_precision
from qfleet.learner.torch_backend import eager_backend
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)
SPEC = EnvironmentSpec("Game-v0", (2, 36, 36), "|u1", 3, None, None, frame_stack=2)
SMALL = NetworkConfig(kind="small", hidden_sizes=(16,))


def plan(**changes):
    overrides = {
        "env.id": "CartPole-v1",
        "env.frame_size": 36,
        "network.kind": "small",
        "network.hidden_sizes": [16],
        "learner.batch_size": 4,
        "learner.device": "cpu",
        "runtime": "local",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    config = resolve_config(load_config("generic-pixels", [], overrides), SPEC, cpus=1, gpus=0)
    return run_plans(config).learner


def test_in_precision_float32_is_the_forward_itself():
    forward = forward_function(build_network(SMALL, SPEC, seed=1))
    assert in_precision(forward, "float32", "cpu") is forward


@pytest.mark.parametrize("dueling", [False, True])
def test_bfloat16_rounds_and_its_last_layer_and_gradients_are_float32(dueling):
    config = SMALL.model_copy(update={"dueling": dueling})
    network = build_network(config, SPEC, seed=1)
    forward = forward_function(network)
    parameters = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    frames = torch.rand(64, 2, 36, 36, generator=torch.Generator().manual_seed(0))

    full = forward(parameters, {}, frames, True)
    rounded = in_precision(forward, "bfloat16", "cpu")(parameters, {}, frames, True)
    gradients = torch.autograd.grad(rounded.sum(), list(parameters.values()))

    assert rounded.dtype == torch.float32
    distance = ((rounded - full).abs().max() / full.abs().max()).item()
    assert 1e-6 < distance < 0.03
    # Outputs of a bfloat16 layer would have 8 bits.
    assert (rounded != rounded.bfloat16().float()).float().mean() > 0.9
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_learner_updates_in_bfloat16_near_float32_and_keeps_float32_parameters():
    sample = precision_choice._sample(plan(), SPEC)
    results = {}
    for name in ("float32", "bfloat16"):
        backend = eager_backend(plan(learner__precision=name), SPEC, "cpu")
        measured = backend.run(sample)
        backend.accept()
        results[name] = measured.td_errors_abs, backend.online()

    errors, online = results["bfloat16"]
    assert not np.array_equal(errors, results["float32"][0])
    np.testing.assert_allclose(errors, results["float32"][0], atol=0.02)
    assert {array.dtype for array in online.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("full_s", "rounded_s", "expected"),
    [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"), (1.0, 6.0, "float32")],
)
def test_faster_precision_table(full_s, rounded_s, expected):
    asked = []

    def update_s(wanted, spec):
        asked.append((wanted.precision, wanted.updates_per_call))
        return full_s if wanted.precision == "float32" else rounded_s

    chosen, gain = faster_precision(plan(), SPEC, update_s)

    assert (chosen, gain) == (expected, full_s / rounded_s)
    assert asked == [("float32", 1), ("bfloat16", 1)]


def test_faster_precision_measures_both_on_this_machine():
    chosen, gain = faster_precision(plan(), SPEC)

    assert gain > 0.0
    assert chosen == ("bfloat16" if gain >= precision_choice.LEAST_GAIN else "float32")


@pytest.mark.parametrize(
    ("changes", "resolved"),
    [
        ({"preset": "generic"}, "float32"),
        ({"learner.device": "cpu"}, "auto"),
        ({"learner.device": "auto"}, "auto"),
        ({"learner.precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_auto_is_left_to_the_clock_on_a_cpu_that_learns_from_frames_only(changes, resolved):
    name = changes.get("preset", "generic-pixels")
    overrides = {"env.id": "CartPole-v1", "learner.precision": "auto", **changes}
    overrides.pop("preset", None)

    config = resolve_config(load_config(name, [], overrides), SPEC, cpus=1, gpus=0)

    assert config.learner.precision == resolved


def test_auto_is_float32_on_a_gpu():
    overrides = {"env.id": "CartPole-v1", "learner.precision": "auto"}

    config = load_config("generic-pixels", [], overrides)

    assert resolve_config(config, SPEC, cpus=1, gpus=1).learner.precision == "float32"


def test_bfloat16_is_never_compiled_on_a_cpu():
    assert not plan(learner__precision="bfloat16").is_compiled_on_cpu
