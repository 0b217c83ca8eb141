"""From sources to one configuration: precedence, the choice of a preset, and every error text."""

from __future__ import annotations

import itertools
import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import qfleet
from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.common import optional_games
from qfleet.common.errors import ConfigError
from qfleet.settings import presets
from qfleet.settings.config import Config as BaseConfig
from qfleet.settings.config_loading import Config, choice_note, dump_yaml, load_config

ALL_PRESETS = ", ".join(presets.names())
"""`test_presets.py` lists them."""


def load(*words):
    arguments = parse_train_arguments(words)
    return load_config(
        arguments.target,
        arguments.files,
        arguments.settings,
        problems=arguments.problems,
        allow_code=arguments.allow_code,
    )


def error_lines(*words):
    with pytest.raises(ConfigError) as caught:
        load(*words)
    assert caught.value.exit_code == 2
    text = str(caught.value).partition("\nTogether, to paste:")[0]
    heading, *lines = text.splitlines()
    settings = "1 setting" if len(lines) == 1 else f"{len(lines)} settings"
    assert heading == f"{settings} cannot be used, so nothing was started:"
    return [line.removeprefix("  ") for line in lines]


@pytest.fixture
def write(tmp_path):
    numbers = itertools.count()

    def write(text):
        path = tmp_path / f"{next(numbers)}.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_load_nothing_is_the_default_preset():
    config = load()

    assert (config.preset_name, config.env.id) == ("cartpole", "CartPole-v1")
    assert config.learner.learning_rate == 3e-2
    assert config.actors.count == "auto"


def test_precedence_defaults_preset_files_left_to_right_flags(write):
    first = write("learner: {batch_size: 96, learning_rate: 3e-3}\nactors: {n_step: 7}\n")
    second = write("learner: {learning_rate: 4e-3}\nactors: {n_step: 8}\n")
    config = load("lunarlander", "--config", first, "--config", second, "--actors.n_step", "9")

    assert config.learner.batch_size == 96  # first file over the preset's 128
    assert config.learner.learning_rate == 4e-3  # second file over the first
    assert config.actors.n_step == 9  # flag over both
    assert config.learner.optimizer == "adam"  # the preset over the default
    assert config.replay.priority_epsilon == 1e-6  # the default


def test_a_bad_value_that_a_later_source_replaces_is_no_error(write):
    path = write("learner: {batch_size: abc}\n")

    assert load("--config", path, "--learner.batch_size", "32").learner.batch_size == 32


@pytest.mark.parametrize(
    ("words", "preset", "env_id"),
    [
        (["lunarlander"], "lunarlander", "LunarLander-v3"),
        (["LunarLander-v3"], "lunarlander", "LunarLander-v3"),
        (["CartPole-v1"], "cartpole", "CartPole-v1"),
        (["Acrobot-v1"], "acrobot", "Acrobot-v1"),
        (["FrozenLake-v1"], "generic", "FrozenLake-v1"),
        (["my_env:Mine-v0"], "generic", "my_env:Mine-v0"),
        (["--env", "FrozenLake-v1"], "generic", "FrozenLake-v1"),
        (["--env-id", "LunarLander-v3"], "lunarlander", "LunarLander-v3"),
        (["cartpole", "--env", "Acrobot-v1"], "cartpole", "Acrobot-v1"),
        (["Acrobot-v1", "--preset", "cartpole"], "cartpole", "Acrobot-v1"),
        (["--preset", "tutorial-state"], "tutorial-state", "CartPole-v1"),
        (["--config", "preset:lunarlander"], "lunarlander", "LunarLander-v3"),
        (["generic", "--env", "Acrobot-v1"], "generic", "Acrobot-v1"),
        (["--env.factory", "my_env:make"], "generic", "my_env:make"),
        (["cartpole", "--env.factory", "my_env:make"], "cartpole", "my_env:make"),
        (["--env.factory", "null"], "cartpole", "CartPole-v1"),
        (["--env.factory", "m:f", "--env", "Named-v0"], "generic", "Named-v0"),
    ],
)
def test_choice_of_preset_and_environment(words, preset, env_id):
    config = load(*words)

    assert (config.preset_name, config.env.id) == (preset, env_id)


def test_an_environment_that_observes_images_takes_generic_pixels(monkeypatch):
    class Images(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)
        observation_space = gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8)

    monkeypatch.setitem(gymnasium.registry, "Images-v0", EnvSpec("Images-v0", entry_point=Images))

    config = load("Images-v0")

    assert (config.preset_name, config.env.id) == ("generic-pixels", "Images-v0")
    assert config.env.observation == "pixels"
    module = types.ModuleType("my_images")
    module.make = lambda render_mode: Images()
    monkeypatch.setitem(sys.modules, "my_images", module)
    config = load("--env.factory", "my_images:make")
    assert (config.preset_name, config.env.observation) == ("generic-pixels", "pixels")
    assert load("generic-pixels", "--env", "CartPole-v1").env.id == "CartPole-v1"
    assert error_lines("generic-pixels") == [
        "env.id = null: preset generic-pixels names no environment; "
        "name one: `qfleet train Acrobot-v1` or --env Acrobot-v1"
    ]


def test_an_environment_in_a_file_inherits_no_budget_of_another(write):
    config = load("--config", write("env: {id: FrozenLake-v1}\n"))

    assert config.preset_name == "generic"
    assert config.run.max_learner_steps is None


def test_target_environment_beats_the_one_in_a_file(write):
    path = write("preset: cartpole\nenv: {id: CartPole-v1}\n")

    assert load("Acrobot-v1", "--config", path).env.id == "Acrobot-v1"


def test_preset_as_a_file_keeps_its_place_in_the_order(write):
    path = write("learner: {batch_size: 96}\n")

    assert load("--config", path, "--config", "preset:lunarlander").learner.batch_size == 128
    assert load("--config", "preset:lunarlander", "--config", path).learner.batch_size == 96


def test_kwargs_merge_by_flag_and_are_replaced_as_a_whole(write):
    path = write("env: {kwargs: {gravity: -9.0, wind: off}}\n")

    assert load("--config", path, "--env.kwargs.gravity", "-5").env.kwargs == {
        "gravity": -5,
        "wind": "off",
    }
    assert load("--config", path, "--env.kwargs", "{a: 1}").env.kwargs == {"a": 1}
    assert load("--env.kwargs.a.b", "1").env.kwargs == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("words", "section", "key", "expected"),
    [
        (["-n", "2M"], "run", "max_env_steps", 2_000_000),
        (["--replay.capacity", "1e6"], "replay", "capacity", 1_000_000),
        (["--replay.capacity", "1_000_000"], "replay", "capacity", 1_000_000),
        (["--network.hidden-sizes", "64,32"], "network", "hidden_sizes", (64, 32)),
        (["--network.hidden_sizes", "[64, 32]"], "network", "hidden_sizes", (64, 32)),
        (["--network.hidden_sizes", "64"], "network", "hidden_sizes", (64,)),
        (["--learner.double_q", "False"], "learner", "double_q", False),
        (["--learner.compile", "off"], "learner", "compile", "off"),
        (["--run-dir", "2024"], "run", "dir", "2024"),
        (["--run-dir", "007"], "run", "dir", "007"),
        (["--run-dir", "null"], "run", "dir", None),
        (["--learner.max_grad_norm", "null"], "learner", "max_grad_norm", None),
        (["--eval.solved_at_return", "-110"], "eval", "solved_at_return", -110.0),
    ],
)
def test_flag_values_reach_the_model(words, section, key, expected):
    assert getattr(getattr(load(*words), section), key) == expected


def test_text_in_a_file_may_look_like_a_number(write):
    assert load("--config", write("run: {dir: 2024}\n")).run.dir == "2024"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--learner.batch_size", "abc"],
            "learner.batch_size = abc (--learner.batch_size): must be a whole number ≥ 1",
        ),
        (
            ["--actors.count", "0"],
            "actors.count = 0 (--actors.count): must be a whole number ≥ 1 or auto",
        ),
        (
            ["--actors.count", "aut"],
            "actors.count = aut (--actors.count): must be a whole number ≥ 1 or auto; "
            "did you mean auto?",
        ),
        (
            ["-n", "1.5"],
            "run.max_env_steps = 1.5 (--run.max_env_steps, -n): must be a whole number ≥ 1 or null",
        ),
        (
            ["--learner.optimizer", "adm"],
            "learner.optimizer = adm (--learner.optimizer): must be one of sgd, adam, radam; "
            "did you mean adam?",
        ),
        (
            ["--learner.double-q", "yes"],
            "learner.double_q = yes (--learner.double-q): must be true or false",
        ),
        (
            ["--actors.discount", "1.5"],
            "actors.discount = 1.5 (--actors.discount): must be a number > 0 and ≤ 1",
        ),
        (
            ["--learner.learning_rate", "true"],
            "learner.learning_rate = true (--learner.learning_rate): must be a number > 0",
        ),
        (
            ["--network.hidden_sizes", "[64, 0, x]"],
            "network.hidden_sizes = [64, 0, 'x'] (--network.hidden_sizes): "
            "must be a list of whole numbers ≥ 1",
        ),
        (
            ["--env.kwargs", "5"],
            "env.kwargs = 5 (--env.kwargs): must be a mapping",
        ),
        (
            ["--env.factory", "a.b"],
            "env.factory = a.b (--env.factory): must be written module:function",
        ),
        (
            ["--learner.device", "gpu"],
            "learner.device = gpu (--learner.device): must be auto, cpu, cuda or cuda:N",
        ),
        (["--runtime", "lokal"], "runtime = lokal (--runtime): must be one of ray, local"),
        (["--seed", "-1"], "seed = -1 (--seed): must be a whole number ≥ 0"),
    ],
)
def test_wrong_values_are_one_line_each(words, expected):
    (line,) = error_lines(*words)

    assert line.removesuffix("; did you mean local?") == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--actors.cuont", "8"],
            "actors.cuont = 8 (--actors.cuont): is not a key; did you mean --actors.count?",
        ),
        (
            ["--n-step", "3"],
            "n_step = 3 (--n-step): is not a key; did you mean --actors.n_step?",
        ),
        (
            ["--actors.batch_size", "3"],
            "actors.batch_size = 3 (--actors.batch_size): is not a key; "
            "did you mean --learner.batch_size?",
        ),
        (
            ["--episodes", "3"],
            "episodes = 3 (--episodes): is not a key; did you mean --eval.episodes?",
        ),
        (
            ["--num_cpus", "3"],
            "num_cpus = 3 (--num_cpus): is not a key; "
            "did you mean --actors.num_cpus or --learner.num_cpus?",
        ),
        (
            ["--batch_size", "64"],
            "batch_size = 64 (--batch_size): is not a qfleet key; use --learner.batch_size 64",
        ),
        (
            ["--gamma", "0.99"],
            "gamma = 0.99 (--gamma): is not a qfleet key; use --actors.discount 0.99",
        ),
        (
            ["--learner.lr", "1e-3"],
            "learner.lr = 1e-3 (--learner.lr): is not a qfleet key; "
            "use --learner.learning_rate 0.001",
        ),
        (
            ["--learner", "3"],
            "learner = 3 (--learner): is a section; set its keys, such as learner.device",
        ),
        (
            ["--learner.batch_size.x", "3"],
            "learner.batch_size.x = 3 (--learner.batch_size.x): is not a key; "
            "did you mean --learner.batch_size?",
        ),
        (
            ["--wibble", "3"],
            "wibble = 3 (--wibble): is not a key; `qfleet train --help-all` lists every key",
        ),
    ],
)
def test_unknown_keys_say_what_was_meant(words, expected):
    assert error_lines(*words) == [expected]


def test_foreign_periods_are_converted_with_the_values_of_this_run():
    # 1000 env steps · 48 samples each / batches of 128
    (line,) = error_lines("lunarlander", "--target-update-interval", "1000")
    assert "--learner.target_update_period_learner_steps 375 (1000 env steps there" in line

    lines = error_lines("lunarlander", "--target_update_interval", "1000", "--batch_size", "32")
    assert "--learner.target_update_period_learner_steps 1500 (1000 env" in lines[0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "cartpol",
            "TARGET = cartpol: is no preset, and Gymnasium knows no environment cartpol; did you "
            "mean the preset cartpole, or the environment CartPole-v0 or CartPole-v1?",
        ),
        (
            "Acrobat-v1",
            "TARGET = Acrobat-v1: is no preset, and Gymnasium knows no environment Acrobat-v1; "
            "did you mean the preset acrobot, or the environment Acrobot-v1?",
        ),
        (
            "tutorial_stat",
            "TARGET = tutorial_stat: is no preset, and Gymnasium knows no environment "
            "tutorial_stat; did you mean the preset tutorial-state?",
        ),
        (
            "MinAtar/Breakot-v0",
            "TARGET = MinAtar/Breakot-v0: is no preset, and Gymnasium knows no environment "
            "MinAtar/Breakot-v0; did you mean the preset minatar-breakout, or the environment "
            "MinAtar/Breakout-v0?",
        ),
        (
            "minatar",
            "env.id = null: preset minatar names no environment; "
            "name one: `qfleet train MinAtar/Freeway-v0` or --env MinAtar/Freeway-v0",
        ),
        (
            "run.yaml",
            "TARGET = run.yaml: is no preset, and Gymnasium knows no environment run.yaml; "
            "for a file write --config run.yaml",
        ),
        (
            "qqqq",
            "TARGET = qqqq: is no preset, and Gymnasium knows no environment qqqq; "
            "for one of your own write module:Id, or set env.factory",
        ),
        (
            "generic",
            "env.id = null: preset generic names no environment; "
            "name one: `qfleet train Acrobot-v1` or --env Acrobot-v1",
        ),
    ],
)
def test_wrong_targets_are_explained(target, expected):
    assert error_lines(target) == [expected]


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("ale_py:ALE/Pong-v5", "ale_py", "atari"),
        ("MinAtar/Breakout-v0", "minatar", "minatar"),
    ],
)
def test_target_of_an_extra_that_is_not_installed_names_the_line(
    env_id, module, extra, monkeypatch
):
    games = optional_games.OPTIONAL_GAMES[optional_games.namespace(env_id)]

    def missing():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setitem(
        optional_games.OPTIONAL_GAMES,
        optional_games.namespace(env_id),
        games._replace(register=missing),
    )
    for known in [known for known in gymnasium.registry if known.startswith(("ALE/", "MinAtar/"))]:
        monkeypatch.delitem(gymnasium.registry, known)

    assert error_lines(env_id) == [
        f"TARGET = {env_id}: is no preset, and {env_id} needs an optional package "
        f"(No module named '{module}'); pip install 'qfleet[{extra}]'"
    ]


def test_unknown_environment_by_flag_and_in_a_file(write):
    assert error_lines("--env", "CartPole-v9") == [
        "env.id = CartPole-v9 (--env): Gymnasium knows no environment CartPole-v9; "
        "did you mean the environment CartPole-v0 or CartPole-v1?"
    ]
    path = write("seed: 1\nenv:\n  id: Acrobot-v7\n")
    assert error_lines("--config", path) == [
        f"env.id = Acrobot-v7 ({path}:3): Gymnasium knows no environment Acrobot-v7; "
        "did you mean the environment Acrobot-v1?"
    ]


def test_target_that_contradicts_a_flag():
    assert error_lines("Acrobot-v1", "--env", "CartPole-v1") == [
        "env.id = CartPole-v1 (--env): contradicts TARGET, which is Acrobot-v1; give one of the two"
    ]
    assert error_lines("cartpole", "--preset", "generic")[0] == (
        "preset = generic (--preset): contradicts TARGET, which is cartpole; give one of the two"
    )
    assert load("Acrobot-v1", "--env", "Acrobot-v1").env.id == "Acrobot-v1"


def test_unknown_preset_by_key_and_as_a_file():
    assert error_lines("--preset", "cartpol") == [
        f"preset = cartpol (--preset): is not a preset; presets are {ALL_PRESETS}; "
        "did you mean cartpole?"
    ]
    assert error_lines("--config", "preset:r2d2") == [
        f"--config = preset:r2d2: is not a preset; presets are {ALL_PRESETS}"
    ]


def test_files_that_cannot_be_read(tmp_path, write):
    existing = write("seed: 1\n")
    missing = existing.replace("0.yaml", "0.yml")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")

    assert error_lines("--config", missing)[0].endswith(
        f"cannot be read: No such file or directory; did you mean {existing}?"
    )
    assert "is a directory; try " in error_lines("--config", str(tmp_path))[0]
    assert "cannot be read: it is not UTF-8 text" in error_lines("--config", str(binary))[0]


def test_missing_file_suggestions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 1\n")

    assert error_lines("--config", "rum.yaml") == [
        "--config = rum.yaml: cannot be read: No such file or directory; did you mean run.yaml?"
    ]
    assert error_lines("--config", "lunarlander") == [
        "--config = lunarlander: cannot be read: No such file or directory; "
        "for the preset write --config preset:lunarlander"
    ]
    assert error_lines("--config", "no/such.yaml") == [
        "--config = no/such.yaml: cannot be read: No such file or directory"
    ]


def test_errors_of_all_sources_come_at_once(write):
    path = write("learner:\n  batch_size: -1\nlearnr: {a: 1}\ngamma: 0.9\n")
    lines = error_lines(
        "--config", path, "--actors.count", "x", "stray", "--seed", "--config", "preset:none", "b"
    )

    assert lines == [
        "--seed: needs a value; write --seed VALUE",
        "TARGET = b: is one word too many: TARGET is already stray; a value belongs right after "
        "its flag: --SECTION.KEY VALUE",
        f"--config = preset:none: is not a preset; presets are {ALL_PRESETS}",
        "TARGET = stray: is no preset, and Gymnasium knows no environment stray; "
        "for one of your own write module:Id, or set env.factory",
        f"learnr = {{'a': 1}} ({path}:3): is not a key; did you mean learner?",
        f"gamma = 0.9 ({path}:4): is not a qfleet key; use actors.discount: 0.9",
        "actors.count = x (--actors.count): must be a whole number ≥ 1 or auto",
        f"learner.batch_size = -1 ({path}:2): must be a whole number ≥ 1",
    ]


def test_rules_between_keys_are_reported_beside_wrong_values_with_their_origin(write):
    path = write("replay:\n  capacity: 500\n")

    assert error_lines("--config", path, "--actors.n_step", "0") == [
        "actors.n_step = 0 (--actors.n_step): must be a whole number ≥ 1",
        "replay.min_size_to_sample = 1000 (preset cartpole): must be at most replay.capacity "
        "(500); lower it or raise replay.capacity",
    ]


def test_schedule_that_the_runtime_cannot_keep():
    assert error_lines("--runtime", "local", "--run.schedule", "async") == [
        "run.schedule = async (--run.schedule): must be auto or lockstep with --runtime local, "
        "where nothing runs at the same time; set it to auto, or use --runtime ray"
    ]


def test_cuda_on_the_local_runtime_needs_a_gpu_here(monkeypatch):
    monkeypatch.setattr("qfleet.settings.config_loading.nvidia_gpus", lambda: 0)

    assert error_lines("--runtime", "local", "--device", "cuda") == [
        "learner.device = cuda (--device): needs an NVIDIA GPU that torch can use, and there is "
        "none here; set it to auto or cpu; `qfleet doctor` says what is missing"
    ]
    assert load("--device", "cuda").learner.device == "cuda"  # a cluster may have one


def test_overrides_as_a_mapping():
    config = load_config("cartpole", overrides={"actors.count": 4, "learner.batch-size": 32})

    assert (config.actors.count, config.learner.batch_size) == (4, 32)
    with pytest.raises(ConfigError, match=r"actors\.cuont = 4 \(argument\): is not a key; did you"):
        load_config(overrides={"actors.cuont": 4})


def test_config_preset_is_the_public_way():
    config = qfleet.Config.preset("cartpole", {"actors.count": 4})

    assert isinstance(config, BaseConfig)
    assert type(config) is Config
    assert config == load("cartpole", "--actors.count", "4")
    assert Config.preset("FrozenLake-v1").preset_name == "generic"


def test_config_preset_takes_a_factory_that_can_be_imported():
    config = Config.preset("generic", {"env.factory": parse_train_arguments})

    assert config.env.factory == "qfleet.command_line.cli_flags:parse_train_arguments"
    with pytest.raises(ConfigError, match="top level of a module of its own"):
        Config.preset("generic", {"env.factory": lambda render_mode=None: None})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "CartPole-v1: preset 'cartpole'"),
        (["FrozenLake-v1"], "FrozenLake-v1: no preset of its own, took 'generic'"),
        (
            ["cartpole", "--env", "Acrobot-v1"],
            "Acrobot-v1: settings and budget of preset 'cartpole', which was made for CartPole-v1",
        ),
    ],
)
def test_choice_note(words, expected):
    assert choice_note(load(*words)) == expected


def test_choice_note_of_a_config_made_by_hand():
    assert choice_note(BaseConfig(preset="mine")) == (
        "CartPole-v1: no preset of its own, took 'mine'"
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tutorial-state"],
        ["lunarlander", "--env.kwargs", "{a: '1e3', b: [1, null], c: .inf, d: 'off'}"],
        ["--env.factory", "my_env:make", "--network.hidden_sizes", "7", "--run-dir", "2024"],
        ["cartpole", "--env", "Acrobot-v1", "--learner.learning_rate", "1e-12"],
    ],
)
def test_dump_yaml_loads_again_as_the_same(words, write):
    config = load(*words)

    assert load("--config", write(dump_yaml(config)), "--allow-code") == config


def test_dump_yaml_refuses_what_yaml_cannot_hold():
    with pytest.raises(ConfigError, match=r"env\.kwargs and network\.kwargs must hold text"):
        dump_yaml(load_config(overrides={"env.kwargs": {"a": object()}}))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("--network.factory m:f --network.normalization layer", "network.normalization"),
        ("--network.noisy true --actors.epsilon_base 0.2", "actors.epsilon_base"),
        ("--learner.optimizer adam --learner.momentum 0.5", "learner.momentum"),
        ("--learner.loss mse --learner.huber_delta 2", "learner.huber_delta"),
        (
            "--network.distribution c51 --network.value_min 0 --network.value_max 100 "
            "--learner.huber_delta 2",
            "learner.huber_delta",
        ),
        ("--replay.priority_exponent 0.5", "replay.priority_exponent"),
    ],
)
def test_flag_that_another_leaves_without_effect_is_refused(words, key):
    with pytest.raises(ConfigError, match=rf"(?m)^  {key} = \S+ \(--{key}\): "):
        load("cartpole", *words.split())


def test_preset_may_carry_what_a_flag_turns_off():
    config = load("tutorial-state", "--learner.optimizer", "adam", "--learner.loss", "mse")
    assert (config.learner.momentum, config.learner.optimizer) == (0.9, "adam")
