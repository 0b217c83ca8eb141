"""YAML text into settings: key paths, lines, and no YAML 1.1 surprises."""

from __future__ import annotations

import pytest
import yaml

from qfleet.common.errors import ConfigError
from qfleet.settings.yaml_settings import dump, load_plain, parse_value, read_settings

SECTIONS = ("learner", "env", "run")


def read(text):
    settings, problems = read_settings(text, "run.yaml", SECTIONS)
    assert problems == []
    return [(setting.key, setting.value, setting.origin) for setting in settings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e6", 1e6),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("-200", -200),
        ("off", "off"),
        ("no", "no"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("True", True),
        ("null", None),
        ("", None),
        ("[1, x]", [1, "x"]),
        ("a: b: c", "a: b: c"),
        ("'5'", "5"),
    ],
)
def test_parse_value_table(text, expected):
    value = parse_value(text)

    assert value == expected
    assert type(value) is type(expected)


def test_read_settings_nested_and_dotted_keys_with_lines():
    text = "seed: 3\nlearner:\n  batch_size: 32\n  compile: off\nrun.dir: 2024\n"

    assert read(text) == [
        ("seed", 3, "run.yaml:1"),
        ("learner.batch_size", 32, "run.yaml:3"),
        ("learner.compile", "off", "run.yaml:4"),
        ("run.dir", 2024, "run.yaml:5"),
    ]


def test_read_settings_mappings_below_a_key_are_values():
    assert read("env:\n  kwargs: {a: {b: 1}}\n") == [
        ("env.kwargs", {"a": {"b": 1}}, "run.yaml:2"),
    ]


def test_read_settings_keeps_the_text_of_single_values():
    settings, _ = read_settings("run: {dir: 0010, tags: [1]}", "f", SECTIONS)

    assert [setting.text for setting in settings] == ["0010", None]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "learner:\nrun: ~\n"])
def test_read_settings_empty_text_and_sections_are_nothing(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3", "--config = run.yaml: is not YAML: line 2"),
        ("- 1\n- 2", "--config = run.yaml: must hold keys and values"),
        ("just words", "--config = run.yaml: must hold keys and values"),
        (
            "learner:\n  batch_size: 1\n  batch_size: 2",
            "learner.batch_size = 2 (run.yaml:3): is set twice in this file; keep one",
        ),
        ("seed: !!python/name:os.system x", "seed = ? (run.yaml:1): is not a plain value"),
    ],
)
def test_read_settings_mistakes_are_problems(text, expected):
    _, problems = read_settings(text, "run.yaml", SECTIONS)

    assert [str(problem)[: len(expected)] for problem in problems] == [expected]


def test_dump_quotes_text_that_looks_like_something_else():
    content = {"env": {"kwargs": {"a": "1e3", "b": "off", "c": 1e-06, "d": None, "e": "010"}}}
    text = dump(content)

    assert parse_value(text) == content
    assert yaml.safe_load(text)["env"]["kwargs"]["b"] == "off"


DEEP = "a: " + "[" * 103 + "]" * 103
DEEPER = "a: " + "[" * 400 + "]" * 400
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SELF = "a: &a [*a]"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested more than 100 deep"),
        (DEEPER, "nested more than 100 deep"),
        (SELF, "nested more than 100 deep"),
        (BOMB, "stands for more than 100,000 values"),
    ],
    ids=["deep", "deeper", "self", "bomb"],
)
def test_yaml_that_is_more_than_a_configuration_is_a_problem_at_once(text, words):
    settings, [problem] = read_settings(text, "bad.yaml", ())

    assert settings == []
    assert words in str(problem)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_plain(text, "bad.yaml")
    assert parse_value(text) == text
    assert parse_value(text.removeprefix("a: ")) == text.removeprefix("a: ")


def test_load_plain_reads_what_dump_wrote_and_names_the_file_of_what_is_no_yaml():
    content = {"a": {"b": [1, 2.5, None, True, "no"]}, "c": "1e3"}

    assert load_plain(dump(content), "x.yaml") == content
    assert load_plain("", "x.yaml") == {}
    with pytest.raises(ConfigError, match=r"x\.yaml cannot be read as YAML"):
        load_plain("a: [", "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml must hold keys"):
        load_plain("[1]", "x.yaml")
