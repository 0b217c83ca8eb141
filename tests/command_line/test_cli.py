"""The command `qfleet`: help, exit codes, and what each command's module is called with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import qfleet
from qfleet.command_line.cli import main
from qfleet.common.errors import CheckpointError, ConfigError, InvariantError, RoleLostError
from qfleet.settings.config_loading import dump_yaml, load_config

NO_CODE = {"allow_code": False}
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def training(monkeypatch):
    """A training module that only notes how it was called."""
    module = ModuleType("qfleet.training")
    module.calls = []
    module.answer = 0

    module.init_from = []

    def run_train(config, *, resume, run_dir, init_from):
        module.calls.append((config, resume, run_dir))
        module.init_from.append(init_from)
        if isinstance(module.answer, BaseException):
            raise module.answer
        return module.answer

    module.run_train = run_train
    monkeypatch.setitem(sys.modules, "qfleet.training", module)
    return module


@pytest.fixture
def commands(monkeypatch):
    """Modules of the small commands that only note their arguments."""
    calls = {}
    for name in ("eval", "play", "status", "bench", "doctor"):
        module = ModuleType(f"qfleet.commands.{name}")
        module.main = lambda args, name=name: calls.setdefault(name, vars(args)) and 0
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def run(*words):
    """Run the command in a process of its own, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=60
    )


def test_help_loads_nothing_heavy():
    result = run("-X", "importtime", "-m", "qfleet", "--help")

    assert result.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert not loaded & {"torch", "ray", "numpy", "pydantic", "gymnasium", "yaml"}
    assert "argparse" in loaded


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_commands_common_flags_and_examples(words, capsys):
    assert main(words) == 0

    text = capsys.readouterr().out
    for name in ("train", "eval", "play", "status", "bench", "doctor", "config"):
        assert f"qfleet {name}" in text
    assert text.count("\n  qfleet train") == 4  # the command itself and three examples
    assert "--help-all" in text


def test_help_of_train_has_about_a_dozen_flags(capsys):
    assert main(["train", "--help"]) == 0

    text = capsys.readouterr().out
    assert sum(line.startswith(("  --", "  -n")) for line in text.splitlines()) == 16
    assert main(["train", "lunarlander", "-h"]) == 0
    assert capsys.readouterr().out == text


def test_help_names_only_flags_and_presets_that_exist(capsys):
    from qfleet.settings import config_reference, presets

    main(["train", "--help"])
    text = capsys.readouterr().out

    for line in text.splitlines():
        flag = line.strip().split(" ")[0]
        if flag.startswith("--") and "." in flag and "SECTION" not in flag:
            assert flag[2:] in config_reference.keys()  # noqa: SIM118 - a function
    assert all(name in text for name in presets.names())


@pytest.mark.parametrize("words", [["--help-all"], ["train", "--help-all"]])
def test_help_all_lists_every_key(words, capsys):
    from qfleet.settings import config_reference

    assert main(words) == 0

    text = capsys.readouterr().out
    assert all(f"  --{key} " in text for key in config_reference.keys())  # noqa: SIM118


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qfleet {qfleet.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "qfleet: there is no command trian; did you mean train?\n"),
        (["enjoy"], "qfleet: there is no command enjoy; here it is `qfleet play`\n"),
        (["record-video"], "qfleet: there is no command record-video; here it is `qfleet play`\n"),
        (
            ["cartpole"],
            "qfleet: there is no command cartpole; did you mean `qfleet train cartpole`?\n",
        ),
        (
            ["Acrobot-v1"],
            "qfleet: there is no command Acrobot-v1; did you mean `qfleet train Acrobot-v1`?\n",
        ),
        (
            ["zzzz"],
            "qfleet: there is no command zzzz; commands are train, eval, play, status, scale, "
            "study, report, bench, doctor, config\n",
        ),
        (
            ["--seed", "3"],
            "qfleet: --seed belongs to a command, such as: qfleet train --seed ...\n",
        ),
        (["config", "shwo"], "qfleet: there is no command config shwo; did you mean show?\n"),
        (
            ["config", "zzz"],
            "qfleet: there is no command config zzz; it has show, schema, reference\n",
        ),
        (
            ["config", "schema", "x"],
            "qfleet: qfleet config schema takes no further words, got x\n",
        ),
    ],
)
def test_unknown_commands_exit_2_with_a_suggestion(words, expected, capsys):
    assert main(words) == 2

    streams = capsys.readouterr()
    assert streams.err == expected
    assert streams.out == ""


def test_train_passes_the_configuration_on(training):
    assert main(["train", "lunarlander", "--seed", "7", "--run-dir", "out"]) == 0

    ((config, resume, run_dir),) = training.calls
    assert (config.preset_name, config.seed) == ("lunarlander", 7)
    assert (resume, run_dir) == (None, "out")


def test_train_wrong_configuration_exits_2_and_starts_nothing(training, capsys):
    assert main(["train", "--learner.batch_size", "abc", "--gamma", "1"]) == 2

    assert training.calls == []
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.splitlines() == [
        "qfleet: 2 settings cannot be used, so nothing was started:",
        "  gamma = 1 (--gamma): is not a qfleet key; use --actors.discount 1",
        "  learner.batch_size = abc (--learner.batch_size): must be a whole number ≥ 1",
    ]


@pytest.mark.parametrize("exit_code", [0, 4, 143])
def test_train_returns_the_runs_exit_code(training, exit_code):
    training.answer = exit_code

    assert main(["train"]) == exit_code


def test_train_passes_the_run_to_begin_with(training):
    assert main(["train", "--init-from", "runs/other"]) == 0
    assert training.init_from == ["runs/other"]
    assert main(["train"]) == 0
    assert training.init_from[-1] is None


@pytest.mark.parametrize(
    ("error", "expected", "has_traceback"),
    [
        (ConfigError("x is wrong"), 2, False),
        (CheckpointError("x is wrong"), 3, False),
        (RoleLostError("x is wrong"), 5, False),
        (InvariantError("x is wrong"), 1, True),
        (RuntimeError("x is wrong"), 1, True),
    ],
)
def test_errors_end_with_their_code_and_bugs_keep_the_traceback(
    training, capsys, error, expected, has_traceback
):
    training.answer = error

    assert main(["train"]) == expected

    text = capsys.readouterr().err
    assert ("Traceback" in text) is has_traceback
    assert text.endswith("x is wrong\n")
    assert "\033" not in text


def test_keyboard_interrupt_exits_130(training, capsys):
    training.answer = KeyboardInterrupt()

    assert main(["train"]) == 130
    assert capsys.readouterr().err == "qfleet: interrupted\n"


def test_resume_takes_the_runs_own_configuration(training, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config("lunarlander")))

    for run_words in (tmp_path, tmp_path / "latest", tmp_path / "checkpoints" / "ckpt-1-1"):
        assert main(["train", "--resume", str(run_words), "-n", "3M"]) == 0
        config, resume, _ = training.calls[-1]
        assert (config.preset_name, resume) == ("lunarlander", str(run_words))
        assert config.run.max_env_steps == 3_000_000


def test_resume_auto_starts_from_the_words_and_continues_from_the_run(training, tmp_path):
    words = ["train", "cartpole", "--resume", "auto", "--run-dir", str(tmp_path)]

    assert main(words) == 0
    assert training.calls[0][0].learner.batch_size == 64
    assert training.calls[0][1:] == ("auto", str(tmp_path))

    saved = load_config("cartpole", overrides={"learner.batch_size": 32})
    (tmp_path / "config.yaml").write_text(dump_yaml(saved))
    assert main(words) == 0
    assert training.calls[1][0].learner.batch_size == 32


def test_resume_of_nothing_is_left_to_the_training_module(training, tmp_path):
    assert main(["train", "--resume", str(tmp_path / "none")]) == 0

    assert training.calls[0][1] == str(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval"], {"run": "runs/latest", "episodes": 100, "seed": None, "json": False} | NO_CODE),
        (
            ["eval", "r", "--episodes", "1e3", "--seed", "0", "--json", "--allow-code"],
            {"run": "r", "episodes": 1000, "seed": 0, "json": True, "allow_code": True},
        ),
        (
            ["play", "r", "--video", "a.mp4", "--seed", "5"],
            {"run": "r", "video": "a.mp4", "episodes": 1, "seed": 5} | NO_CODE,
        ),
        (["play"], {"run": "runs/latest", "video": None, "episodes": 1, "seed": None} | NO_CODE),
        (["status", "--json"], {"run": "runs/latest", "json": True}),
        (["bench", "replay"], {"name": "replay", "json": False}),
        (["doctor"], {"json": False}),
    ],
)
def test_small_commands_get_their_arguments(commands, words, expected):
    assert main(words) == 0

    assert commands == {words[0]: expected}


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["eval", "--episodes", "0"], "--episodes: must be a whole number ≥ 1, got 0"),
        (["play", "--seed", "x"], "--seed: must be a whole number ≥ 0, got x"),
        (["bench"], "the following arguments are required: NAME"),
        (["doctor", "extra"], "unrecognized arguments: extra"),
        (["eval", "--ep", "3"], "unrecognized arguments: --ep"),
    ],
)
def test_small_commands_wrong_words_exit_2(commands, capsys, words, fragment):
    assert main(words) == 2

    assert commands == {}
    assert fragment in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval", "play", "status", "bench", "doctor"])
def test_small_commands_have_help(commands, capsys, name):
    assert main([name, "--help"]) == 0
    assert f"usage: qfleet {name}" in capsys.readouterr().out
    assert commands == {}


def test_config_show_prints_yaml_that_loads_again(capsys, tmp_path):
    assert main(["config", "show", "FrozenLake-v1", "--actors.count", "3"]) == 0

    text = capsys.readouterr().out
    assert text.startswith("# FrozenLake-v1: no preset of its own, took 'generic'\n")
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert load_config(files=[path]) == load_config("FrozenLake-v1", overrides={"actors.count": 3})


def test_config_show_reports_errors(capsys):
    assert main(["config", "show", "--actors.count", "0"]) == 2
    assert "actors.count = 0" in capsys.readouterr().err


def test_config_schema_and_reference(capsys):
    assert main(["config", "schema"]) == 0
    assert "preset" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["config", "reference"]) == 0
    assert capsys.readouterr().out.startswith("# Configuration\n")


@pytest.mark.parametrize("words", [["config"], ["config", "--help"], ["config", "show", "-h"]])
def test_config_help(words, capsys):
    assert main(words) == 0
    assert "qfleet config show [TARGET]" in capsys.readouterr().out


def test_wrong_configuration_is_answered_without_torch_or_ray():
    script = (
        "import sys; from qfleet.command_line.cli import main; "
        "code = main(['train', 'Acrobat-v1', '--device', 'cuda']); "
        "assert not {'torch', 'ray'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    result = run("-c", script)

    assert result.returncode == 2, result.stderr
    assert "did you mean the preset acrobot, or the environment Acrobot-v1?" in result.stderr
