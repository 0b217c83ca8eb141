"""What is said of memory and time before a run from frames starts."""

from __future__ import annotations

import pytest

from qfleet.common.types import EnvironmentSpec
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans
from qfleet.terminal.frame_notices import frame_notices, measured_updates_per_s

STATES = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


def frames(depth: int, size: int = 84) -> EnvironmentSpec:
    return EnvironmentSpec("E", (depth, size, size), "|u1", 2, None, None, frame_stack=depth)


def notices(preset, spec, rate=3.0, gpus=0, **changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    config = resolve_config(load_config(preset, [], overrides), spec, cpus=2, gpus=gpus)
    return list(frame_notices(config, spec, lambda plan, spec: rate))


def refuse(plan, spec):
    raise AssertionError("nothing may be measured")


def test_frame_notices_of_states_are_none():
    assert notices("cartpole", STATES) == []


def test_frame_notices_say_the_memory_of_the_full_replay():
    (line,) = notices("cartpole-pixels", frames(4), runtime="local")

    # 84² + 2·4·8 bytes of numbers + 12 of action, return and discount, for each of 100,000.
    assert line.startswith("replay: 100,000 transitions take 0.66 GiB when all are there")
    assert line.endswith("GiB of memory are free here")


def test_frame_notices_on_ray_say_whose_memory_it_is_and_count_the_containers(monkeypatch):
    monkeypatch.setattr("qfleet.terminal.frame_notices.memory_bytes", lambda: 2**30)

    (line,) = notices("cartpole-pixels", frames(4), runtime="ray")

    assert line.endswith(
        "1.0 of 1.0 GiB of memory are free on this host; each shard's is asked, too"
    )


def test_frame_notices_forecast_the_courses_hours_and_name_the_cheaper_command():
    _, line = notices("tutorial-pixels", frames(8), rate=2.5)

    assert line == (
        "forecast: 2.5 updates/s on this CPU, so 6 m 40 s for the 1,000 updates after each episode "
        "and 22 h 13 m for 200 episodes (sooner when solved); a GPU is used when there is one, and "
        "`qfleet train cartpole-pixels` learns from the same pixels with far cheaper updates"
    )


def test_frame_notices_forecast_no_further_than_the_budget_of_updates():
    _, line = notices("tutorial-pixels", frames(8), rate=2.5, run__max_learner_steps=49_500)

    assert "6 m 40 s for the 1,000 updates after each episode and 5 h 30 m for 50 episodes" in line


def test_frame_notices_of_another_preset_name_the_cheaper_network():
    changes = {
        "learner__updates_per_episode": 1000,
        "replay__samples_per_insert": None,
        "actors__envs_per_actor": 1,
    }
    _, line = notices("cartpole-pixels", frames(4), run__max_episodes=50, **changes)

    assert line.endswith("and --network.kind small makes updates cheaper")


@pytest.mark.parametrize(
    ("rate", "gpus"), [(200_000 / 180.0, 0), (3.0, 1)], ids=["short", "on a GPU"]
)
def test_frame_notices_without_a_long_wait_say_nothing_of_time(rate, gpus):
    assert len(notices("tutorial-pixels", frames(8), rate=rate, gpus=gpus)) == 1


def test_frame_notices_of_other_schedules_measure_nothing():
    config = resolve_config(load_config("cartpole-pixels"), frames(4), cpus=2, gpus=0)

    assert len(list(frame_notices(config, frames(4), refuse))) == 1


def test_measured_updates_per_s_is_of_this_network():
    overrides = {"network.kind": "small", "network.hidden_sizes": [4], "env.frame_size": 36}
    spec = frames(2, 36)
    config = resolve_config(load_config("tutorial-pixels", [], overrides), spec, cpus=2, gpus=0)

    assert measured_updates_per_s(run_plans(config).learner, spec) > 1.0
