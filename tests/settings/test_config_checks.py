"""Every rule between keys, each broken alone, and the numbers behind `auto`."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.common.messages import chunk_bytes
from qfleet.common.types import EnvironmentSpec
from qfleet.common.wire import MAX_CHUNK_BYTES
from qfleet.replay_server.rate_limiter import minimum_limiter_tolerance_samples
from qfleet.settings.checks.machine_checks import check_chunk, check_request, replay_bytes
from qfleet.settings.config import Config
from qfleet.settings.config_auto import (
    block_periods,
    max_blocks_per_request,
    resolve_config,
    updates_per_call,
)
from qfleet.settings.config_checks import check_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.problems import Problem, show_value

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
GIB = 2**30


def config(**sections):
    """A valid configuration with `section=dict(key=value)` changed."""
    return Config.model_validate(sections)


def problems(checked, spec=None, *, cpus=8, gpus=0, memory_bytes=GIB, cuda_available=None):
    return check_config(
        checked,
        spec,
        cpus=cpus,
        gpus=gpus,
        memory_bytes=memory_bytes,
        cuda_available=cuda_available,
    )


def episode_mode(**sections):
    learner = {"updates_per_episode": 1000, **sections.pop("learner", {})}
    replay = {"samples_per_insert": None, **sections.pop("replay", {})}
    return config(learner=learner, replay=replay, **sections)


def test_check_config_defaults_have_no_problem():
    assert problems(Config(), SPEC) == []
    assert problems(episode_mode(), SPEC) == []


PIXELS = {"observation": "pixels"}
BROKEN = [
    (
        config(network={"factory": "m:f", "dueling": True}),
        "network.dueling",
        "is of the built-in networks",
    ),
    (
        config(network={"factory": "m:f", "noisy": True}),
        "network.noisy",
        "is of the built-in networks",
    ),
    (
        config(network={"atoms": 5}),
        "network.atoms",
        "is for a network.distribution, which is none",
    ),
    (
        config(network={"distribution": "qr"}, learner={"loss": "mse"}),
        "learner.loss",
        "network.distribution qr has a loss of its own",
    ),
    (
        config(network={"distribution": "iqn", "hidden_sizes": [8]}),
        "network.hidden_sizes",
        "must be at least two layers",
    ),
    (
        config(network={"distribution": "c51", "value_max": 1}),
        "network.value_min",
        "is needed by network.distribution c51",
    ),
    (
        config(network={"distribution": "c51", "value_min": 1, "value_max": 1}),
        "network.value_min",
        "must be below value_max (1)",
    ),
    (
        config(network={"distribution": "c51", "value_min": 0, "value_max": 1, "atoms": 1}),
        "network.atoms",
        "must be at least 2",
    ),
    (
        config(learner={"learning_rate_end": 1e-5}),
        "learner.learning_rate_end",
        "learner.learning_rate_schedule is constant",
    ),
    (
        config(learner={"learning_rate_end_learner_steps": 9}),
        "learner.learning_rate_end_learner_steps",
        "learner.learning_rate_schedule is constant",
    ),
    (
        config(learner={"learning_rate_schedule": "linear"}),
        "learner.learning_rate_end_learner_steps",
        "here is none",
    ),
    (
        config(learner={"munchausen": True, "double_q": False}, actors={"n_step": 3}),
        "actors.n_step",
        "must be 1 with learner.munchausen: its bonus is of a single action",
    ),
    (
        config(learner={"munchausen": True}),
        "learner.double_q",
        "must be false with learner.munchausen",
    ),
    (
        config(
            learner={"munchausen": True, "double_q": False},
            network={"distribution": "qr"},
        ),
        "network.distribution",
        "must be none with learner.munchausen",
    ),
    (
        config(runtime="local", actors={"max_memory_gb": 2.0}),
        "actors.max_memory_gb",
        "which only async runs can",
    ),
    (
        config(run={"schedule": "lockstep"}, actors={"max_memory_gb": 2.0}),
        "actors.max_memory_gb",
        "which only async runs can",
    ),
    (config(env=PIXELS), "network.kind", "takes state (env.observation), which is pixels"),
    (
        config(replay={"compression": "zlib"}),
        "replay.compression",
        "is for frames, and env.observation is state",
    ),
    (
        config(learner={"precision": "bfloat16"}),
        "learner.precision",
        "is for frames, and env.observation is state",
    ),
    (
        config(env={"observation": "planes"}, network={"kind": "small"}),
        "network.kind",
        "takes pixels (env.observation), which is planes",
    ),
    (
        config(network={"kind": "small"}),
        "network.kind",
        "takes pixels (env.observation), which is state",
    ),
    (
        config(env={**PIXELS, "frame_size": 35}, network={"kind": "nature"}),
        "env.frame_size",
        "network.kind nature takes frames of at least 36 pixels",
    ),
    (
        config(env={**PIXELS, "frame_rows": [20, 55]}, network={"kind": "nature"}),
        "env.frame_rows",
        "network.kind nature takes frames of at least 36 pixels",
    ),
    (
        config(env={**PIXELS, "frame_rows": [50, 50]}, network={"kind": "small"}),
        "env.frame_rows",
        "must be first,end with 0 ≤ first < end ≤ 84 (env.frame_size)",
    ),
    (
        config(env={**PIXELS, "frame_rows": [50, 85]}, network={"kind": "small"}),
        "env.frame_rows",
        "must be first,end with 0 ≤ first < end ≤ 84 (env.frame_size)",
    ),
    (
        config(actors={"epsilon_decay_episodes": 9, "epsilon_schedule": "linear"}),
        "actors.epsilon_decay_episodes",
        "learner.updates_per_episode: only then one actor counts all episodes",
    ),
    (
        episode_mode(actors={"epsilon_decay_episodes": 9}),
        "actors.epsilon_decay_episodes",
        "needs actors.epsilon_schedule linear",
    ),
    (config(network={"kwargs": {"a": 1}}), "network.kwargs", "only for network.factory"),
    (
        config(network={"normalization": "batch"}, learner={"batch_size": 1}),
        "learner.batch_size",
        "at least 2 with network.normalization batch",
    ),
    (
        config(actors={"count": 2, "min_count": 3}),
        "actors.min_count",
        "at most actors.count (2)",
    ),
    (
        config(
            actors={"count": 1}, replay={"capacity": 1000, "shards": 2, "min_size_to_sample": 501}
        ),
        "replay.min_size_to_sample",
        "1 of 2 shards of 500 are fed",
    ),
    (
        config(replay={"capacity": 3, "shards": 4, "min_size_to_sample": 1}),
        "replay.shards",
        "at most replay.capacity (3)",
    ),
    (
        config(replay={"capacity": 1000}, learner={"batch_size": 1001}),
        "learner.batch_size",
        "at most replay.capacity (1000)",
    ),
    (
        config(replay={"capacity": 1000, "min_size_to_sample": 1001}),
        "replay.min_size_to_sample",
        "at most replay.capacity (1000)",
    ),
    (
        config(replay={"capacity": 1003, "shards": 4, "min_size_to_sample": 1001}),
        "replay.min_size_to_sample",
        "4 shards of 250 are fed",
    ),
    (
        config(replay={"capacity": 1000, "shards": 2}, actors={"chunk_transitions": 501}),
        "actors.chunk_transitions",
        "the capacity of one shard (500)",
    ),
    (
        config(replay={"min_size_to_sample": 1000}, run={"max_env_steps": 999}),
        "replay.min_size_to_sample",
        "at most run.max_env_steps (999), or nothing is ever learned",
    ),
    (
        config(replay={"sampling": "prioritized"}),
        "replay.importance_sampling_end_learner_steps",
        "here is none",
    ),
    (
        config(
            replay={"sampling": "prioritized", "samples_per_insert": None},
            run={"max_env_steps": 5000},
        ),
        "replay.importance_sampling_end_learner_steps",
        "what one of env steps pays for at a set samples_per_insert",
    ),
    (
        config(
            replay={"limiter_tolerance_samples": 1183, "samples_per_insert": 8},
            actors={"chunk_transitions": 256},
            learner={"batch_size": 32, "updates_per_call": 10},
        ),
        "replay.limiter_tolerance_samples",
        "must be at least 1184 or both sides wait for ever: (samples_per_insert 8 x "
        "chunk_transitions 256 + batch_size 32 x 10 updates) / 2",
    ),
    (episode_mode(actors={"count": 2}), "actors.count", "must be 1 or auto"),
    (episode_mode(actors={"envs_per_actor": 4}), "actors.envs_per_actor", "must be 1 or auto"),
    (
        episode_mode(replay={"capacity": 1000, "shards": 2, "min_size_to_sample": 501}),
        "replay.min_size_to_sample",
        "1 of 2 shards of 500 are fed",
    ),
    (
        episode_mode(replay={"samples_per_insert": 4}),
        "replay.samples_per_insert",
        "must be null with learner.updates_per_episode",
    ),
    (
        config(learner={"target_network": False, "target_tau": 0.01}),
        "learner.target_tau",
        "must be null without a target network",
    ),
    (
        config(runtime="local", run={"schedule": "async"}),
        "run.schedule",
        "auto or lockstep with --runtime local",
    ),
    (
        config(learner={"device": "cuda", "num_gpus": 0}),
        "learner.device",
        "needs a GPU, but learner.num_gpus is 0",
    ),
    (
        config(learner={"device": "cuda:1"}),
        "learner.device",
        "Ray shows the learner only its own 1 GPU(s)",
    ),
]


@pytest.mark.parametrize(("broken", "key", "fragment"), BROKEN)
def test_check_config_one_broken_rule_is_one_problem(broken, key, fragment):
    found = problems(broken, SPEC)

    assert [problem.key for problem in found] == [key]
    assert fragment in found[0].requirement
    assert found[0].remedy


@pytest.mark.parametrize(
    ("learner", "evaluation", "keys"),
    [
        ({"publish_period_learner_steps": 51}, {}, ["learner.publish_period_learner_steps"]),
        (
            {"target_update_period_learner_steps": 201},
            {},
            ["learner.target_update_period_learner_steps"],
        ),
        ({"target_update_period_learner_steps": 201, "target_tau": 0.1}, {}, []),
        ({"target_update_period_learner_steps": 201, "target_network": False}, {}, []),
        ({}, {"period_learner_steps": 505}, ["eval.period_learner_steps"]),
    ],
)
def test_check_config_periods_must_be_multiples_of_a_block(learner, evaluation, keys):
    broken = config(learner={"updates_per_call": 10, **learner}, eval=evaluation)

    assert [problem.key for problem in problems(broken)] == keys


def test_check_config_period_message_names_the_nearest_fit():
    broken = config(learner={"updates_per_call": 8, "publish_period_learner_steps": 52})

    assert str(problems(broken)[0]) == (
        "learner.publish_period_learner_steps = 52: must be a multiple of "
        "learner.updates_per_call (8); set it to 48, or learner.updates_per_call to auto"
    )


def test_check_config_updates_per_episode_must_be_whole_blocks():
    broken = episode_mode(learner={"updates_per_call": 50, "updates_per_episode": 1025})

    assert [problem.key for problem in problems(broken)] == ["learner.updates_per_episode"]


def test_check_config_reports_everything_at_once():
    broken = config(
        runtime="local",
        run={"schedule": "async"},
        actors={"count": 1, "min_count": 2},
        replay={"capacity": 10, "min_size_to_sample": 20},
    )

    assert [problem.key for problem in problems(broken)] == [
        "actors.min_count",
        "learner.batch_size",
        "replay.min_size_to_sample",
        "run.schedule",
    ]


def test_check_config_gpu_presence_is_judged_only_when_known():
    wants = config(learner={"device": "cuda"})

    assert problems(wants, cuda_available=None) == []
    assert problems(wants, cuda_available=True, gpus=1) == []
    for found in (
        problems(wants, cuda_available=False, gpus=1),
        problems(wants, cuda_available=True, gpus=0),
    ):
        assert [str(problem) for problem in found] == [
            "learner.device = cuda: needs an NVIDIA GPU that torch can use, and there is none "
            "here; set it to auto or cpu; `qfleet doctor` says what is missing"
        ]


def test_check_config_reserved_gpu_must_exist():
    found = problems(config(learner={"num_gpus": 1}), cuda_available=False)

    assert [problem.key for problem in found] == ["learner.num_gpus"]
    assert problems(config(learner={"num_gpus": 0}), cuda_available=False) == []


def test_check_config_memory_message_states_both_sides():
    # 2 observations of 4 float32, an int32 action and two float32: 44 bytes a row.
    broken = config(replay={"capacity": 2**28})

    assert replay_bytes(broken, SPEC) == 44 * 2**28
    assert [str(problem) for problem in problems(broken, SPEC, memory_bytes=GIB)] == [
        "replay.capacity = 268435456: needs 11.00 GiB (44 bytes for each transition) and there "
        "are 1.00 GiB of memory; set it to at most 24403223"
    ]
    assert problems(broken, None, memory_bytes=GIB) == []
    assert problems(broken, SPEC, memory_bytes=44 * 2**28) == []


def test_replay_bytes_counts_what_prioritizing_holds_per_row():
    uniform = config(replay={"capacity": 10_000})
    prioritized = config(replay={"capacity": 10_000, "sampling": "prioritized"})
    by_rank = config(replay={"capacity": 10_000, "sampling": "rank"})

    assert replay_bytes(prioritized, SPEC) - replay_bytes(uniform, SPEC) == 160_000
    assert replay_bytes(by_rank, SPEC) - replay_bytes(uniform, SPEC) == 320_000


@given(st.floats(0.25, 32), st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_minimum_tolerance_is_where_waiting_for_ever_ends(ratio, chunk, batch, updates):
    request = batch * updates

    def both_can_wait(tolerance):
        # A balance e blocks the insert when e + ratio·chunk > tolerance, the sample when
        # e − request < −tolerance: is there room between the two bounds?
        return tolerance - Fraction(ratio * chunk) < request - tolerance

    least = minimum_limiter_tolerance_samples(ratio, chunk, request)

    assert not both_can_wait(least)
    assert both_can_wait(least - 1)


@pytest.mark.parametrize(
    ("checked", "cpus", "expected"),
    [
        (config(), 2, 1),
        (config(), 1, 1),
        (config(), 16, 14),
        (config(actors={"num_cpus": 2}), 16, 7),
        (config(learner={"num_cpus": 8}), 16, 7),
        (config(replay={"shards": 4}), 16, 13),
        (config(replay={"shards": 4}), 2, 4),
        (config(actors={"min_count": 3}), 2, 3),
        (config(actors={"count": 5}), 2, 5),
        (config(runtime="local"), 64, 1),
        (config(runtime="local", replay={"shards": 2}), 64, 2),
        (episode_mode(), 64, 1),
    ],
)
def test_resolve_actor_count_table(checked, cpus, expected):
    assert resolve_config(checked, SPEC, cpus=cpus, gpus=0).actors.count == expected


@pytest.mark.parametrize(
    ("checked", "expected"),
    [
        (config(), (16, 128)),
        (config(actors={"envs_per_actor": 1}), (1, 32)),
        (config(actors={"envs_per_actor": 64}), (64, 512)),
        (config(actors={"chunk_transitions": 7}), (16, 7)),
        (
            config(replay={"capacity": 100, "shards": 4, "min_size_to_sample": 50}),
            (16, 25),
        ),
        (episode_mode(), (1, 32)),
    ],
)
def test_resolve_envs_and_chunk_table(checked, expected):
    actors = resolve_config(checked, SPEC, cpus=8, gpus=0).actors

    assert (actors.envs_per_actor, actors.chunk_transitions) == expected


@pytest.mark.parametrize(
    ("checked", "expected"),
    [
        (config(), (1024, 4)),
        (config(actors={"chunk_transitions": 7}), (7, 4)),
        (config(actors={"chunk_transitions": 7, "max_chunk_transitions": 9}), (9, 4)),
        (config(replay={"capacity": 300, "min_size_to_sample": 50}), (300, 4)),
        (config(learner={"updates_per_call": 50}), (1024, 1)),
        (config(learner={"updates_per_call": 50, "max_blocks_per_request": 2}), (1024, 2)),
        # A window that was set bounds both: (2 x 10,000 - 64 x 50) / 16, then what that leaves.
        (config(replay={"limiter_tolerance_samples": 10_000}), (1024, 1)),
        (config(replay={"limiter_tolerance_samples": 5_000}), (425, 1)),
        (config(replay={"limiter_tolerance_samples": 20_000}), (1024, 4)),
        (config(replay={"limiter_tolerance_samples": 12_000}), (1024, 2)),
        (config(replay={"limiter_tolerance_samples": 9, "samples_per_insert": None}), (1024, 4)),
    ],
)
def test_resolve_largest_chunk_and_request_table(checked, expected):
    resolved = resolve_config(checked, SPEC, cpus=8, gpus=0)

    assert resolved.learner.updates_per_call == 50
    largest = resolved.actors.max_chunk_transitions, resolved.learner.max_blocks_per_request
    assert largest == expected
    ratio = resolved.replay.samples_per_insert
    if ratio is not None:
        least = minimum_limiter_tolerance_samples(ratio, largest[0], 64 * 50 * largest[1])
        assert resolved.replay.limiter_tolerance_samples >= least
        assert problems(resolved) == []


@pytest.mark.parametrize(
    ("learner", "period", "expected"),
    [
        ({}, 500, 50),
        ({"target_update_period_learner_steps": 70}, 500, 10),
        ({"target_update_period_learner_steps": 70, "target_tau": 0.1}, 500, 50),
        ({"target_update_period_learner_steps": 7, "target_network": False}, 500, 50),
        ({"publish_period_learner_steps": 500}, 101, 1),
        ({"publish_period_learner_steps": 10_000, "target_tau": 0.1}, 10_000, 50),
        ({"publish_period_learner_steps": 96, "target_tau": 0.1}, 96, 48),
        ({"updates_per_call": 3}, 500, 3),
    ],
)
def test_resolve_updates_per_call_table(learner, period, expected):
    checked = config(learner=learner, eval={"period_learner_steps": period})

    assert resolve_config(checked, SPEC, cpus=8, gpus=0).learner.updates_per_call == expected


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 2000))
def test_updates_per_call_is_the_largest_divisor_up_to_fifty(publish, target, period, episode):
    checked = episode_mode(
        learner={
            "publish_period_learner_steps": publish,
            "target_update_period_learner_steps": target,
            "updates_per_episode": episode,
        },
        eval={"period_learner_steps": period},
    )

    fits = [
        k for k in range(1, 51) if all(value % k == 0 for value in block_periods(checked).values())
    ]
    assert updates_per_call(checked) == max(fits)


def test_resolve_limiter_tolerance_by_hand():
    # 2 · (16 · 128 · 2 chunks · 3 actors + 64 · 50 · 2 requests)
    resolved = resolve_config(config(actors={"count": 3}), SPEC, cpus=8, gpus=0)

    assert resolved.replay.limiter_tolerance_samples == 2 * (16 * 128 * 2 * 3 + 64 * 50 * 2)


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        ({"sampling": "prioritized"}, (0.6, 0.4)),
        ({"sampling": "rank"}, (0.7, 0.5)),
        ({"sampling": "rank", "priority_exponent": 1}, (1, 0.5)),
        ({"sampling": "rank", "importance_sampling_exponent": 0.2}, (0.7, 0.2)),
    ],
)
def test_resolve_exponents_are_the_papers_unless_set(replay, expected):
    checked = config(replay=replay, run={"max_learner_steps": 700})

    resolved = resolve_config(checked, SPEC, cpus=8, gpus=0).replay

    assert (resolved.priority_exponent, resolved.importance_sampling_exponent) == expected


@pytest.mark.parametrize(
    ("replay", "run", "expected"),
    [
        ({}, {"max_learner_steps": 700}, 700),
        ({}, {"max_learner_steps": 700, "max_env_steps": 5}, 700),
        # (3000 − 1000) transitions · 16 draws / batches of 64
        ({}, {"max_env_steps": 3000}, 500),
        ({}, {"max_env_steps": 1000}, 1),
        ({"importance_sampling_end_learner_steps": 9}, {"max_learner_steps": 700}, 9),
        ({"importance_sampling_end_learner_steps": None}, {"max_learner_steps": 700}, None),
        ({"importance_sampling_exponent": 1}, {"max_learner_steps": 700}, None),
        ({"sampling": "uniform"}, {"max_learner_steps": 700}, None),
    ],
)
def test_resolve_importance_sampling_end_table(replay, run, expected):
    checked = config(replay={"sampling": "prioritized", **replay}, run=run)

    assert [p for p in problems(checked) if p.key.startswith("replay.importance")] == []
    resolved = resolve_config(checked, SPEC, cpus=8, gpus=0)
    assert resolved.replay.importance_sampling_end_learner_steps == expected


def test_resolve_schedules_of_a_run_by_episodes_end_with_its_last_update():
    """200 episodes of 1,000 updates: the course's program may be prioritized, or slow down."""
    for changes in (
        {"replay.sampling": "prioritized"},
        {"replay.sampling": "rank"},
        {"learner.learning_rate_schedule": "linear"},
    ):
        checked = load_config("tutorial-state", [], changes)
        assert problems(checked) == []
        resolved = resolve_config(checked, SPEC, cpus=8, gpus=0)
        ends = (
            resolved.replay.importance_sampling_end_learner_steps,
            resolved.learner.learning_rate_end_learner_steps,
        )
        assert [end for end in ends if end is not None] == [200_000]


@pytest.mark.parametrize("preset", ["tutorial-state", "tutorial-pixels", "cartpole"])
def test_resolved_configuration_of_a_noisy_run_loads_again(preset):
    """What `config.yaml` of the run holds: no ε is left that its constant 0 contradicts."""
    checked = load_config(preset, [], {"network.noisy": True})
    resolved = resolve_config(checked, None, cpus=8, gpus=0)
    assert (resolved.actors.epsilon_end, resolved.actors.epsilon_decay_episodes) == (0.0, None)
    assert problems(resolved) == []


def test_resolve_learning_rate_end_is_the_budget_and_null_without_a_schedule():
    for learner, expected in (
        ({}, None),
        ({"learning_rate_schedule": "cosine"}, 700),
        ({"learning_rate_schedule": "linear", "learning_rate_end_learner_steps": 9}, 9),
    ):
        checked = config(learner=learner, run={"max_learner_steps": 700})
        resolved = resolve_config(checked, SPEC, cpus=8, gpus=0)
        assert resolved.learner.learning_rate_end_learner_steps == expected
        assert problems(resolved) == []


@pytest.mark.parametrize(
    ("learner", "gpus", "expected"),
    [
        ({}, 0, ("cpu", 0)),
        ({}, 2, ("auto", 1)),
        ({"device": "cpu"}, 2, ("cpu", 0)),
        ({"device": "cuda"}, 1, ("cuda", 1)),
        ({"num_gpus": 0}, 1, ("cpu", 0)),
        ({"num_gpus": 2}, 2, ("auto", 2)),
    ],
)
def test_resolve_device_table(learner, gpus, expected):
    resolved = resolve_config(config(learner=learner), SPEC, cpus=8, gpus=gpus).learner

    assert (resolved.device, resolved.num_gpus) == expected


def test_resolve_config_leaves_no_number_open_and_passes_its_own_checks():
    for checked in (config(), episode_mode(), config(runtime="local")):
        resolved = resolve_config(checked, SPEC, cpus=8, gpus=0)

        assert problems(resolved, SPEC) == []
        assert resolve_config(resolved, SPEC, cpus=64, gpus=8) == resolved
        assert Config.model_validate(resolved.model_dump(by_alias=True)) == resolved
        assert resolved.eval.solved_at_return == "auto"


def test_resolve_config_keeps_the_callers_class():
    class Special(Config):
        pass

    assert type(resolve_config(Special(), None, cpus=2, gpus=0)) is Special


def test_problem_line_holds_all_parts():
    full = Problem("a.b", None, "must be set", "set it", "run.yaml:3")

    assert str(full) == "a.b = null (run.yaml:3): must be set; set it"
    assert str(Problem("--x", "", "needs a value")) == "--x: needs a value"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        ((128, 64), "[128, 64]"),
        (1e-6, "1e-06"),
        ("x" * 61, "x" * 57 + "..."),
    ],
)
def test_show_value_table(value, expected):
    assert show_value(value) == expected


@pytest.mark.parametrize("gpus", [0, 1])
def test_compile_required_is_allowed_on_any_device(gpus):
    """A CUDA graph on a GPU, a compiled package on a CPU."""
    for device in ("auto", "cpu", "cuda")[: 2 + gpus]:
        wanted = config(learner={"compile": "required", "device": device})
        assert problems(wanted, gpus=gpus, cuda_available=gpus > 0) == []


def test_networks_of_frames_are_accepted_with_frames():
    network = {"kind": "nature", "hidden_sizes": [512]}
    assert problems(config(env=PIXELS, network=network), memory_bytes=8 * GIB) == []
    assert problems(config(env=PIXELS, network={"factory": "a:b"})) == []
    smallest = config(env={**PIXELS, "frame_size": 36}, network=network)
    assert problems(smallest) == []
    rows = {**PIXELS, "frame_size": 42, "frame_rows": [30, 42]}
    assert problems(config(env=rows, network={"kind": "tiny"})) == []
    by_episode = {"epsilon_decay_episodes": 9, "epsilon_schedule": "linear"}
    assert problems(episode_mode(actors=by_episode)) == []


def test_replay_bytes_of_frames_count_each_frame_once():
    spec = EnvironmentSpec("E", (4, 84, 84), "|u1", 2, None, None, frame_stack=4)
    million = config(replay={"capacity": 1_000_000})

    assert replay_bytes(million, spec) == 1_000_000 * (84 * 84 + 2 * 4 * 4 + 4 + 4 + 4)
    assert replay_bytes(million, spec) <= 7.2e9
    packed = million.model_copy(
        update={"replay": million.replay.model_copy(update={"compression": "zlib"})}
    )
    assert replay_bytes(packed, spec) == 1_000_000 * (84 * 84 // 4 + 2 * 4 * 4 + 4 + 4 + 4)


def test_blocks_of_frames_hold_32_mb_at_most():
    small = config(env=PIXELS, network={"kind": "small"}, learner={"batch_size": 64})
    course = config(
        env={**PIXELS, "frame_stack": 8}, network={"kind": "convnet"}, learner={"batch_size": 32}
    )

    for checked in (small, course):
        env = checked.env
        batch_bytes = 2 * env.frame_stack * env.frame_size**2 * checked.learner.batch_size
        k, blocks = updates_per_call(checked), max_blocks_per_request(checked)
        assert k > 1
        assert blocks == 1
        assert k * batch_bytes <= 32 * 2**20
        assert math.gcd(*block_periods(checked).values()) % k == 0
    assert updates_per_call(config(learner={"batch_size": 64})) == 50


BIG = EnvironmentSpec("Big", (500_000,), "<f4", 2, None, 100)  # 4 MB a transition


def test_auto_chunks_fit_into_a_message():
    resolved = resolve_config(config(), BIG, cpus=8, gpus=0)
    actors = resolved.actors
    rows = actors.max_chunk_transitions + actors.envs_per_actor * actors.n_step

    assert actors.chunk_transitions == actors.max_chunk_transitions == 1
    assert list(check_chunk(resolved, BIG, None))  # sixteen environments end at once: 64 MB more
    fewer = resolve_config(config(actors={"envs_per_actor": 2}), BIG, cpus=8, gpus=0)
    rows = fewer.actors.max_chunk_transitions + 2 * fewer.actors.n_step
    assert list(check_chunk(fewer, BIG, None)) == []
    assert chunk_bytes(BIG, rows) <= MAX_CHUNK_BYTES < chunk_bytes(BIG, rows + 1)
    small = resolve_config(config(), SPEC, cpus=8, gpus=0).actors
    assert (small.chunk_transitions, small.max_chunk_transitions) == (128, 1024)


def test_chunk_over_the_limit_of_a_message_is_refused_with_the_arithmetic():
    asked = config(
        actors={"envs_per_actor": 2, "chunk_transitions": 20, "max_chunk_transitions": 30}
    )
    resolved = resolve_config(asked, BIG, cpus=8, gpus=0)
    n_step = resolved.actors.n_step

    [problem] = check_chunk(resolved, BIG, None)

    assert (problem.key, problem.value) == ("actors.max_chunk_transitions", 30)
    assert f"up to {30 + 2 * n_step} transitions (30 + envs_per_actor 2 x n_step {n_step})" in str(
        problem
    )
    assert "3.82 MiB each" in str(problem)
    assert "a chunk may have 64 MiB" in str(problem)
    local = resolved.model_copy(update={"runtime": "local"})
    assert list(check_chunk(local, BIG, None)) == []  # no chunk is sent


@pytest.mark.parametrize(("round_env_steps", "steps"), [(40, 40), (None, 100)])
def test_lockstep_round_over_the_limit_of_a_message_is_refused(round_env_steps, steps):
    asked = config(run={"schedule": "lockstep"}, actors={"envs_per_actor": 1})
    resolved = resolve_config(asked, BIG, cpus=8, gpus=0)

    [problem] = check_chunk(resolved, BIG, round_env_steps)

    assert problem.key == "run.schedule"
    assert f"({steps} + envs_per_actor 1 x n_step" in str(problem)
    assert list(check_chunk(resolved, BIG, 5)) == []


@pytest.mark.parametrize(
    ("asked", "key", "value"),
    [
        ({"updates_per_call": 50, "max_blocks_per_request": 2}, "max_blocks_per_request", 2),
        ({"updates_per_call": 50, "batch_size": 512}, "updates_per_call", 50),
        ({"updates_per_call": 1, "batch_size": 20_000}, "batch_size", 20_000),
    ],
)
def test_request_over_the_limit_of_a_message_is_refused_with_the_arithmetic(asked, key, value):
    spec = EnvironmentSpec("E", (8, 84, 84), "|u1", 2, None, None, frame_stack=8)
    network = {"kind": "nature", "normalization": "none"}
    learner = {"batch_size": 256, **asked}
    env = {**PIXELS, "frame_stack": 8}
    resolved = resolve_config(
        config(env=env, network=network, learner=learner), spec, cpus=8, gpus=0
    )

    [problem] = check_request(resolved, spec)

    assert (problem.key, problem.value) == (f"learner.{key}", value)
    learner = resolved.learner
    draws = learner.max_blocks_per_request * learner.updates_per_call * learner.batch_size
    assert f"requests of {draws:,} draws (max_blocks_per_request " in str(problem)
    assert f"x batch_size {learner.batch_size}) of 110 KiB each" in str(problem)
    assert "an answer may have 2048 MiB" in str(problem)
    local = resolved.model_copy(update={"runtime": "local"})
    assert list(check_request(local, spec)) == []  # nothing is sent
    assert list(check_request(resolved, SPEC)) == []  # states are small
