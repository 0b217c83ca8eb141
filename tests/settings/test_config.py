"""Types of the configuration: what each accepts, and that nothing unknown gets in."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from qfleet.common.config import EnvConfig, NetworkConfig, parse_count
from qfleet.settings.config import (
    ActorsConfig,
    Config,
    EvalConfig,
    LearnerConfig,
    RayConfig,
    ReplayConfig,
    RunConfig,
    section_names,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1e6", 1_000_000),
        ("1_000_000", 1_000_000),
        ("2M", 2_000_000),
        ("1.5k", 1_500),
        ("3g", 3_000_000_000),
        (5.0, 5),
        (7, 7),
        ("2kk", "2kk"),
        ("1.5", "1.5"),
        ("inf", "inf"),
        ("auto", "auto"),
        ("", ""),
        (1.5, 1.5),
        (None, None),
    ],
)
def test_parse_count_table(given, expected):
    assert parse_count(given) == expected


@pytest.mark.parametrize("value", [0, -1, 1.5, "1.5", "many", True, None, "inf", float("nan")])
def test_count_wrong_values_are_refused(value):
    with pytest.raises(ValidationError):
        LearnerConfig(batch_size=value)


@pytest.mark.parametrize("value", [0, 1.5, "Auto", True, None, "2kk"])
def test_auto_count_wrong_values_are_refused(value):
    with pytest.raises(ValidationError):
        ActorsConfig(count=value)


def test_auto_count_takes_auto_and_counts():
    assert ActorsConfig(count="auto").count == "auto"
    assert ActorsConfig(count="1e1").count == 10


@pytest.mark.parametrize("value", ["true", "TRUE", "True", True])
def test_flag_true_in_any_case(value):
    assert LearnerConfig(double_q=value).double_q is True


@pytest.mark.parametrize("value", [1, 0, "yes", "on", "", None])
def test_flag_other_words_are_refused(value):
    with pytest.raises(ValidationError, match="must be true or false"):
        LearnerConfig(double_q=value)


@pytest.mark.parametrize("value", [True, "fast", 0, -1e-3, float("inf"), float("nan"), None])
def test_positive_wrong_values_are_refused(value):
    with pytest.raises(ValidationError):
        LearnerConfig(learning_rate=value)


def test_numbers_take_text_as_yaml_leaves_it():
    assert LearnerConfig(learning_rate="1e-4").learning_rate == 1e-4
    assert EvalConfig(solved_at_return="-110").solved_at_return == -110.0


@pytest.mark.parametrize(
    "section",
    [
        lambda: ActorsConfig(discount=1.01),
        lambda: ActorsConfig(discount=0),
        lambda: ActorsConfig(epsilon_ladder_exponent=float("inf")),
        lambda: ReplayConfig(priority_exponent=2.1),
        lambda: ReplayConfig(samples_per_insert=0),
        lambda: LearnerConfig(momentum=1),
        lambda: LearnerConfig(target_tau=0),
        lambda: LearnerConfig(device="gpu"),
        lambda: LearnerConfig(device="cuda:x"),
        lambda: LearnerConfig(num_gpus=-1),
        lambda: RunConfig(max_wall_s=0),
        lambda: RayConfig(wait_for_resources_s=-1),
        lambda: EvalConfig(solved_at_return=float("nan")),
        lambda: NetworkConfig(hidden_sizes=[64, 0]),
        lambda: Config(seed=-1),
    ],
)
def test_range_ends_are_refused(section):
    with pytest.raises(ValidationError):
        section()


@pytest.mark.parametrize(
    ("given", "expected"),
    [([128, 64], (128, 64)), ("128,64", (128, 64)), (256, (256,)), ("1e2, 5", (100, 5)), ([], ())],
)
def test_hidden_sizes_spellings(given, expected):
    assert NetworkConfig(hidden_sizes=given).hidden_sizes == expected


def test_ship_single_file_becomes_a_list():
    assert RayConfig(ship="my_env.py").ship == ("my_env.py",)


def test_factory_function_becomes_its_name():
    assert EnvConfig(factory=section_names).factory == "qfleet.settings.config:section_names"


@pytest.mark.parametrize("value", ["module.function", "a:b:c", ":f", "m:", "a b:c"])
def test_factory_text_must_name_module_and_function(value):
    with pytest.raises(ValidationError, match="must be written module:function"):
        EnvConfig(factory=value)


def test_factory_local_function_is_refused_with_the_remedy():
    with pytest.raises(ValidationError, match="top level of a module of its own"):
        EnvConfig(factory=lambda render_mode=None: None)


def test_config_unknown_keys_are_refused_and_sections_are_frozen():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Config.model_validate({"learner": {"batchsize": 3}})
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.learner.batch_size = 3


def test_config_preset_is_the_alias_in_and_out():
    config = Config(preset="lunarlander")

    assert config.preset_name == "lunarlander"
    assert config.model_dump(by_alias=True)["preset"] == "lunarlander"


def test_config_round_trips_through_json_and_pickle():
    config = Config(
        preset="generic",
        network=NetworkConfig(hidden_sizes=(3, 2)),
        env=EnvConfig(id="X-v1", kwargs={"a": [1, {"b": None}]}),
    )

    assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("runtime", "schedule", "updates_per_episode", "expected"),
    [
        ("ray", "auto", None, "async"),
        ("ray", "async", None, "async"),
        ("ray", "lockstep", None, "lockstep"),
        ("local", "auto", None, "lockstep"),
        ("ray", "auto", 1000, "lockstep"),
    ],
)
def test_effective_schedule_table(runtime, schedule, updates_per_episode, expected):
    config = Config(
        runtime=runtime,
        run=RunConfig(schedule=schedule),
        learner=LearnerConfig(updates_per_episode=updates_per_episode),
    )

    assert config.effective_schedule == expected


def test_section_names_in_order():
    assert section_names() == (
        "env",
        "network",
        "actors",
        "replay",
        "learner",
        "eval",
        "run",
        "ray",
        "metrics",
    )


def test_every_key_has_a_line_of_documentation():
    for section in (Config, *(type(getattr(Config(), name)) for name in section_names())):
        for name, info in section.model_fields.items():
            if name not in section_names():
                assert info.description, f"{section.__name__}.{name}"
