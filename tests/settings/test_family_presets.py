"""`rainbow` and `apex` are the papers' combinations, and resolve on states and on frames."""

from __future__ import annotations

import pytest

from qfleet.common.types import EnvironmentSpec
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_checks import check_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

STATES = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
PIXELS = {
    "env.observation": "pixels",
    "network.kind": "nature",
    "network.hidden_sizes": [512],
    "replay.capacity": 10_000,
}
FRAMES = EnvironmentSpec("CartPole-v1", (4, 84, 84), "|u1", 2, 475.0, 500, frame_stack=4)


def test_rainbow_is_hessels_six() -> None:
    config = load_config("rainbow", [], {})
    network, replay = config.network, config.replay
    assert (network.dueling, network.noisy, network.distribution) == (True, True, "c51")
    assert (network.n_atoms, config.actors.n_step, config.learner.double_q) == (51, 3, True)
    assert replay.sampling == "prioritized"
    assert (replay.priority_exponent, replay.importance_sampling_exponent) == (0.5, 0.4)


def test_apex_is_horgans() -> None:
    config = load_config("apex", [], {})
    actors, replay = config.actors, config.replay
    assert (config.network.dueling, config.learner.double_q, actors.n_step) == (True, True, 3)
    assert actors.epsilon_schedule == "ladder"
    assert (actors.epsilon_base, actors.epsilon_ladder_exponent) == (0.4, 7.0)
    assert replay.sampling == "prioritized"
    assert (replay.priority_exponent, replay.importance_sampling_exponent) == (0.6, 0.4)
    assert replay.importance_sampling_end_learner_steps is None


@pytest.mark.parametrize("preset", ["rainbow", "apex"])
@pytest.mark.parametrize(("changes", "spec"), [({}, STATES), (PIXELS, FRAMES)])
def test_family_presets_run_on_states_and_on_frames(
    preset: str, changes: dict[str, object], spec: EnvironmentSpec
) -> None:
    config = load_config(preset, [], {"runtime": "local", **changes})
    limits = {"cpus": 2, "gpus": 0, "memory_bytes": 2**34, "cuda_available": False}
    assert check_config(config, spec, **limits) == []
    plans = run_plans(resolve_config(config, spec, cpus=2, gpus=0))
    assert plans.actor.gives_priorities
    assert plans.actor.epsilon_schedule == ("constant" if preset == "rainbow" else "ladder")
