"""What a resumed run may change, when it is complete, and which checkpoint it goes on from."""

from __future__ import annotations

import json

import pytest

from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.run_files.checkpoint import write_checkpoint
from qfleet.run_files.resume import (
    check_compatible,
    find_point,
    is_complete,
    load_saved_config,
    target_of,
    with_saved_numbers,
)
from qfleet.run_files.run_directory import RunDirectory
from qfleet.run_files.summary import Accounting, RunSummary, write_summary
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import dump_yaml, load_config


def unresolved(**changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("cartpole", [], {"actors.count": 2, "runtime": "local", **overrides})


def make(**changes):
    return resolve_config(unresolved(**changes), None, cpus=2, gpus=0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory that holds a configuration and nothing else."""
    monkeypatch.chdir(tmp_path)
    config = make(run__max_env_steps=10_000, run__max_learner_steps=500)
    with RunDirectory.create(config, str(tmp_path / "run")) as directory:
        directory.write_config(dump_yaml(config))
        yield directory


def end(run, status, **changes):
    """Leave the summary of a run that ended with `status`."""
    numbers = dict.fromkeys(
        ("eval_episodes", "env_steps", "learner_steps", "target_syncs", "params_version"), 0
    )
    seconds = dict.fromkeys(
        ("startup_s", "train_s", "eval_s", "wall_s", "env_steps_per_s", "learner_steps_per_s"), 0.0
    )
    summary = RunSummary(
        status=status,
        exit_code=0,
        resumable=True,
        env_id="CartPole-v1",
        preset="cartpole",
        runtime="local",
        schedule="lockstep",
        seed=1,
        solved=status == "solved",
        solved_at_env_step=None,
        eval_return_mean=None,
        eval_return_std=None,
        actors=2,
        replay_shards=1,
        samples_per_insert=None,
        limited_by="learning",
        params_sha256="",
        accounting=Accounting(),
        device="cpu",
        learner_path="eager",
        versions={},
        **numbers,
        **seconds,
        **{
            "stop_reason": "solved" if status == "solved" else "max_learner_steps",
            "budgets": {"max_env_steps": 10_000, "max_learner_steps": 500},
            **changes,
        },
    )
    write_summary(summary, run.path)


# What may change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run__max_learner_steps", 9999),
        ("run__max_wall_s", 1.0),
        ("run__checkpoint_period_s", 5.0),
        ("eval__episodes", 7),
        ("eval__solved_at_return", 300),
        ("metrics__console", "none"),
        ("ray__address", "auto"),
        ("eval__period_learner_steps", 1000),
    ],
)
def test_check_compatible_allows_what_may_change(key, value):
    check_compatible(make(), make(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"), [("actors__count", 3), ("eval__period_learner_steps", 50)]
)
def test_with_saved_numbers_keeps_the_sizes_that_follow_from_what_may_change(key, value):
    saved, wanted = make(), unresolved(**{key: value})
    anew = resolve_config(wanted, None, cpus=8, gpus=0)
    tolerance = saved.replay.limiter_tolerance_samples
    resumed = resolve_config(with_saved_numbers(wanted, saved), None, cpus=8, gpus=0)
    check_compatible(saved, resumed)
    assert resumed.replay.limiter_tolerance_samples == tolerance
    section, _, name = key.partition("__")
    assert getattr(getattr(resumed, section), name) == value
    if key == "actors__count":
        assert anew.replay.limiter_tolerance_samples != tolerance


@pytest.mark.parametrize(
    ("schedule", "count"),
    [
        ({"runtime": "ray", "run__schedule": "lockstep"}, 2),
        # Free to take what the machine at hand has: 8 CPUs, less learner, shard and rounding.
        ({"runtime": "ray"}, 6),
    ],
)
def test_with_saved_numbers_keeps_the_fleet_in_lockstep_unless_asked(schedule, count):
    saved = make(**schedule)
    wanted = unresolved(actors__count="auto", **schedule)
    resumed = resolve_config(with_saved_numbers(wanted, saved), None, cpus=8, gpus=0)
    assert resumed.actors.count == count
    asked = unresolved(actors__count=5, **schedule)
    assert with_saved_numbers(asked, saved).actors.count == 5


def test_with_saved_numbers_takes_nothing_that_was_given():
    wanted = unresolved(learner__updates_per_call=25)
    assert with_saved_numbers(wanted, make()).learner.updates_per_call == 25
    with pytest.raises(CheckpointError, match=r"learner\.updates_per_call: the run has 50"):
        check_compatible(make(), with_saved_numbers(wanted, make()))


def test_check_compatible_lists_every_differing_key_with_both_values():
    wanted = make(
        seed=2,
        learner__learning_rate=0.5,
        network__hidden_sizes=[32],
        env__kwargs={"sutton_barto_reward": True},
        actors__n_step=7,
        run__max_learner_steps=1,
    )
    with pytest.raises(CheckpointError) as caught:
        check_compatible(make(), wanted)
    lines = str(caught.value).splitlines()
    named = {line.split(":")[0].strip() for line in lines if line.startswith("  ")}
    assert named == {
        *("seed", "learner.learning_rate", "network.hidden_sizes", "env.kwargs", "actors.n_step")
    }
    assert "  actors.n_step: the run has 5, asked for 7" in lines
    assert "  learner.learning_rate: the run has 0.03, asked for 0.5" in lines
    assert caught.value.exit_code == 3


def test_load_saved_config_is_what_was_written(run):
    written = make(run__max_env_steps=10_000, run__max_learner_steps=500)
    assert load_saved_config(run.path).model_dump() == written.model_dump()


# Which run


def test_target_of_without_resume_is_none():
    assert target_of(None, "somewhere") is None


def test_target_of_a_run_is_its_directory(run):
    assert target_of(str(run.path), None).resolve() == run.path.resolve()


def test_target_of_a_missing_run_is_refused(run):
    with pytest.raises(ConfigError, match="no run"):
        target_of("nowhere", None)


def test_target_of_auto_needs_a_directory_and_starts_an_empty_one(run, tmp_path):
    with pytest.raises(ConfigError, match="--run-dir"):
        target_of("auto", None)
    assert target_of("auto", str(tmp_path / "new")) is None
    assert target_of("auto", str(run.path)) == run.path


# Nothing more to do


def test_is_complete_of_a_run_without_summary_is_false(run):
    assert is_complete(run.path, make()) is False


@pytest.mark.parametrize(
    ("status", "changes", "complete"),
    [
        ("finished", {}, True),
        ("finished", {"run__max_env_steps": 10_001}, False),
        ("finished", {"run__max_learner_steps": 501}, False),
        ("finished", {"run__max_env_steps": None}, False),
        ("finished", {"run__max_env_steps": 9_000}, True),
        # A limit that the run did not have is no raise.
        ("finished", {"run__max_episodes": 10}, True),
        ("solved", {}, True),
        ("solved", {"run__max_env_steps": 10**9}, True),
        ("solved", {"eval__stop_when_solved": False}, False),
        ("stopped", {}, False),
        ("failed", {}, False),
    ],
)
def test_is_complete_by_status_and_budgets(run, status, changes, complete):
    end(run, status)
    wanted = make(**{"run__max_env_steps": 10_000, "run__max_learner_steps": 500, **changes})
    assert is_complete(run.path, wanted) is complete


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, True),  # solved before, and the budget is as spent as it was
        ({"run__max_learner_steps": 501}, False),
    ],
)
def test_is_complete_of_a_solved_run_that_went_on_to_its_budget(run, changes, complete):
    end(run, "solved", stop_reason="max_learner_steps")
    limits = {"run__max_env_steps": 10_000, "run__max_learner_steps": 500}

    assert is_complete(run.path, make(eval__stop_when_solved=False, **limits | changes)) is complete


def test_is_complete_holds_budgets_against_those_a_resume_had_raised(run):
    end(run, "finished", budgets={"max_env_steps": 10_000, "max_learner_steps": 2_000})
    limits = {"run__max_env_steps": 10_000}

    assert is_complete(run.path, make(run__max_learner_steps=2_000, **limits))
    assert not is_complete(run.path, make(run__max_learner_steps=2_001, **limits))


# Which checkpoint


def checkpoint(run, generation, files):
    return write_checkpoint(
        run.checkpoints_path,
        learner_step=100 * generation,
        generation=generation,
        files={name: [data] for name, data in files.items()},
        manifest={"run_id": "r1", "env_steps": 5},
    )


def test_find_point_without_checkpoints_is_none(run):
    assert find_point(run) is None


def test_find_point_takes_the_newest_intact_one_and_says_what_it_passed_over(run):
    state = json.dumps({"run_id": "r1", "process": 2}).encode()
    checkpoint(run, 1, {"session.json": state, "learner.qflt": b"1"})
    checkpoint(run, 2, {"session.json": state, "learner.qflt": b"2", "params.safetensors": b""})
    damaged = checkpoint(run, 3, {"session.json": state, "learner.qflt": b"3"})
    (damaged / "learner.qflt").write_bytes(b"x")
    point = find_point(run)
    assert point.checkpoint.learner_step == 200
    assert point.session == {"run_id": "r1", "process": 2}
    assert point.role_files == {"learner.qflt": b"2"}
    [reason] = point.skipped
    assert "learner.qflt" in reason


def test_find_point_with_nothing_intact_is_an_error_with_each_reason(run):
    for generation in (1, 2):
        (checkpoint(run, generation, {"session.json": b"{}"}) / "session.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        find_point(run)
    assert str(caught.value).count("session.json: missing") == 2


def test_find_point_without_a_session_is_an_error(run):
    checkpoint(run, 1, {"learner.qflt": b"1"})
    with pytest.raises(CheckpointError, match=r"session\.json"):
        find_point(run)


@pytest.mark.parametrize(
    "state",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"run_id": 1, "process": 0}', b"[" * 100_000],
)
def test_find_point_with_a_damaged_session_under_a_valid_manifest_is_exit_3(run, state):
    checkpoint(run, 1, {"session.json": state})
    with pytest.raises(CheckpointError, match=r"session\.json is damaged") as caught:
        find_point(run)
    assert caught.value.exit_code == 3


def test_find_point_of_an_older_format_says_what_can_be_done_with_it(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("qfleet.run_files.checkpoint.FORMAT_VERSION", 1)
        checkpoint(run, 1, {"session.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"format 1.*can be played.*--init-from"):
        find_point(run)


@pytest.mark.parametrize("text", ["[1]", "a: [", "learner: {batch_size: many}", "more: 1"])
def test_load_saved_config_of_a_damaged_file_is_exit_2_and_names_it(run, text):
    run.config_path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        load_saved_config(run.path)
    assert caught.value.exit_code == 2
