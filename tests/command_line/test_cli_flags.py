"""The words after `qfleet train`: each way to write a flag, and each way to get it wrong."""

from __future__ import annotations

import pytest

from qfleet.command_line.cli_flags import parse_train_arguments


def settings(*words):
    arguments = parse_train_arguments(words)
    assert arguments.problems == []
    return [(setting.key, setting.value) for setting in arguments.settings]


def lines(*words):
    return [str(problem) for problem in parse_train_arguments(words).problems]


def test_parse_nothing_is_empty():
    arguments = parse_train_arguments([])

    assert (arguments.target, arguments.files, arguments.resume) == (None, [], None)
    assert (arguments.settings, arguments.problems) == ([], [])


def test_parse_target_files_and_resume():
    arguments = parse_train_arguments(
        ["--config", "a.yaml", "lunarlander", "--config=preset:generic", "--resume", "auto"]
    )

    assert arguments.target == "lunarlander"
    assert arguments.files == ["a.yaml", "preset:generic"]
    assert arguments.resume == "auto"
    assert arguments.problems == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--actors.count", "8"], ("actors.count", 8)),
        (["--actors.count=8"], ("actors.count", 8)),
        (["--learner.batch-size", "32"], ("learner.batch_size", 32)),
        (["--learner.double_q", "TRUE"], ("learner.double_q", True)),
        (["--learner.double_q=false"], ("learner.double_q", False)),
        (["--run.max_env_steps", "1e6"], ("run.max_env_steps", 1e6)),
        (["--run.max_env_steps", "2M"], ("run.max_env_steps", "2M")),
        (["--network.hidden_sizes", "[128,64]"], ("network.hidden_sizes", [128, 64])),
        (["--network.hidden_sizes", "128,64"], ("network.hidden_sizes", "128,64")),
        (["--env.kwargs", "{gravity: -9.8}"], ("env.kwargs", {"gravity": -9.8})),
        (["--env.kwargs.gravity", "-9.8"], ("env.kwargs.gravity", -9.8)),
        (["--eval.solved_at_return", "-110"], ("eval.solved_at_return", -110)),
        (["--learner.max_grad_norm", "null"], ("learner.max_grad_norm", None)),
        (["--learner.compile", "off"], ("learner.compile", "off")),
        (["--run.dir", "a=b"], ("run.dir", "a=b")),
        (["--run.dir=a=b"], ("run.dir", "a=b")),
    ],
)
def test_parse_values(words, expected):
    assert settings(*words) == [expected]


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--env", "env.id"),
        ("--env-id", "env.id"),
        ("--env_id", "env.id"),
        ("--total-timesteps", "run.max_env_steps"),
        ("-n", "run.max_env_steps"),
        ("--seed", "seed"),
        ("--runtime", "runtime"),
        ("--device", "learner.device"),
        ("--run-dir", "run.dir"),
        ("--preset", "preset"),
    ],
)
def test_parse_aliases(flag, key):
    assert settings(flag, "7") == [(key, 7)]


def test_parse_keeps_the_text_and_the_flag_as_typed():
    (setting,) = parse_train_arguments(["--run-dir", "0010"]).settings

    assert (setting.value, setting.text, setting.origin) == (10, "0010", "--run-dir")


def test_parse_short_flag_spells_out_its_origin():
    (setting,) = parse_train_arguments(["-n", "5"]).settings

    assert setting.origin == "--run.max_env_steps, -n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--learner.double_q", "--seed", "3"],
            "--learner.double_q: needs a value; write --learner.double_q true or "
            "--learner.double_q false",
        ),
        (["--seed"], "--seed: needs a value; write --seed VALUE"),
        (["-n"], "-n: needs a value; write -n VALUE"),
        (["--config"], "--config: needs a value; write --config VALUE"),
        (
            ["--no-learner.double-q"],
            "--no-learner.double-q: is not a flag; write --learner.double_q false",
        ),
        (
            ["cartpole", "8"],
            "TARGET = 8: is one word too many: TARGET is already cartpole; a value belongs right "
            "after its flag: --SECTION.KEY VALUE",
        ),
        (
            ["-seed", "3"],
            "-seed: is not a flag: names start with two dashes; write --seed VALUE",
        ),
        (["--resume", "a", "--resume", "b"], "--resume = b: is given twice; keep one"),
    ],
)
def test_parse_mistakes(words, expected):
    assert lines(*words) == [expected]


def test_parse_collects_all_mistakes_and_reads_the_rest():
    arguments = parse_train_arguments(["a", "b", "--x.y", "--seed", "3", "c", "--actors.count"])

    assert [problem.key for problem in arguments.problems] == [
        "TARGET",
        "--x.y",
        "TARGET",
        "--actors.count",
    ]
    assert [setting.key for setting in arguments.settings] == ["seed"]
