"""Files that are loaded import installed code only; each command, with a module that tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qfleet
from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.common.config import EnvConfig, NetworkConfig
from qfleet.common.errors import ConfigError
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.params import encode_safetensors
from qfleet.common.types import EnvironmentSpec
from qfleet.run_files.run_directory import RunDirectory
from qfleet.settings.config import Config
from qfleet.settings.config_loading import dump_yaml, load_config
from qfleet.settings.trust import names_own_code

SOURCE = Path(__file__).resolve().parents[2] / "src"
SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
EVIL = """
from pathlib import Path
Path("was_run").write_text("")
import gymnasium
from torch import nn
gymnasium.register("Evil-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=9)

def env(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)

def network(n_inputs, n_actions):
    return nn.Linear(n_inputs, n_actions)
"""
SMALL = [
    *("--runtime", "local", "--actors.count", "1", "--learner.compile", "off"),
    *("--run.max_learner_steps", "50", "--replay.min_size_to_sample", "100"),
    *("--metrics.console", "none"),
]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which evil.py lies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path


@pytest.fixture
def found(evil: Path) -> Path:
    """A run that names evil.py as environment and as network."""
    return make_run(evil / "found", EnvConfig(factory="evil:env"))


def make_run(path: Path, env: EnvConfig, factory: str | None = "evil:network") -> Path:
    network = NetworkConfig(factory=factory, hidden_sizes=(4,), normalization="none")
    module = torch.nn.Linear(4, 2) if factory else build_network(network, SPEC, seed=1)
    data = encode_safetensors(to_arrays(dict(module.named_parameters())), network, SPEC)
    with RunDirectory.create(Config(env=env, network=network), str(path)) as directory:
        directory.write_config(dump_yaml(Config(env=env, network=network)))
        directory.write_best(
            learner_step=5, generation=1, files={"params.safetensors": [data]}, manifest={}
        )
    return path


def qfleet_command(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "SDL_VIDEODRIVER": "dummy"}
    return subprocess.run(
        [sys.executable, "-m", "qfleet", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "found", "--episodes", "1"],
        ["play", "found", "--video", "a.webp"],
        ["train", "--config", "found/config.yaml", "--run-dir", "new", *SMALL],
        ["train", "--resume", "found", *SMALL],
        ["train", "--resume", "auto", "--run-dir", "found", *SMALL],
    ],
)
def test_command_on_a_found_run_imports_nothing_beside_it(found: Path, words: list[str]) -> None:
    done = qfleet_command(*words)

    assert done.returncode == 2, done.stderr
    assert "evil" in done.stderr
    assert "--allow-code" in done.stderr
    assert not Path("was_run").exists()
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "found", "--episodes", "1", "--allow-code"],
        ["train", "--config", "found/config.yaml", "--run-dir", "new", "--allow-code", *SMALL],
        [
            *("train", "--config", "found/config.yaml", "--run-dir", "new", *SMALL),
            *("--env.factory", "evil:env", "--network.factory", "evil:network"),
        ],
    ],
)
def test_command_that_names_the_code_or_allows_it_runs_it(found: Path, words: list[str]) -> None:
    done = qfleet_command(*words)

    assert done.returncode == 0, done.stderr
    assert Path("was_run").exists()


def test_installed_factory_of_a_found_run_does_not_reach_the_working_directory_either(
    evil: Path,
) -> None:
    """`gymnasium:make` is installed, and would import what its argument names."""
    indirect = EnvConfig(factory="gymnasium:make", kwargs={"id": "evil:Evil-v0"})
    make_run(evil / "found", indirect, factory=None)

    for words in (
        ["eval", "found", "--episodes", "1"],
        ["train", "--config", "found/config.yaml", "--run-dir", "new", *SMALL],
    ):
        assert qfleet_command(*words).returncode != 0
        assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("env", "factory"), [({"id": "evil:Evil-v0"}, None), ({"factory": "evil:env"}, None)]
)
def test_python_calls_refuse_the_environment_of_a_found_run(
    evil: Path, env: dict[str, str], factory: str | None
) -> None:
    run = make_run(evil / "found", EnvConfig(**env), factory)
    policy = qfleet.load_policy(run)

    for call in (lambda: qfleet.make_env(run), lambda: qfleet.evaluate(policy, run, episodes=1)):
        with pytest.raises(ConfigError, match=r"config\.yaml names code of evil \(env\."):
            call()

    assert not Path("was_run").exists()


def test_python_calls_run_it_when_allowed_or_imported_already(
    found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        with pytest.raises(ConfigError, match=r"params\.safetensors names code of evil"):
            qfleet.load_policy(found)
        assert not Path("was_run").exists()

        policy = qfleet.load_policy(found, allow_code=True)

        assert Path("was_run").exists()
        assert len(qfleet.evaluate(policy, found, episodes=2)) == 2  # the module is there now
        assert qfleet.load_policy(found).spec == SPEC
    finally:
        sys.modules.pop("evil", None)


def refused(*words: str) -> list[str]:
    """The keys that loading refuses."""
    arguments = parse_train_arguments(words)
    try:
        load_config(
            arguments.target,
            arguments.files,
            arguments.settings,
            problems=arguments.problems,
            allow_code=arguments.allow_code,
        )
    except ConfigError as error:
        return [line.split(" ")[2] for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize(
    ("text", "words", "keys"),
    [
        ("env.factory: evil:env", [], ["env.factory"]),
        ("env.id: evil:Evil-v0", [], ["env.id"]),
        ("network.factory: evil:network", [], ["network.factory"]),
        ("network.factory: evil.deeper:network", [], ["network.factory"]),
        (
            "{env.factory: evil:env, network.factory: evil:n}",
            [],
            ["env.factory", "network.factory"],
        ),
        ("ray.ship: [evil.py]", [], ["ray.ship"]),
        ("env.factory: evil:env", ["--allow-code"], []),
        ("ray.ship: [evil.py]", ["--allow-code"], []),
        ("env.factory: evil:env", ["--env.factory", "evil:env"], []),
        ("env.factory: evil:env", ["--network.factory", "evil:network"], ["env.factory"]),
        ("env.id: evil:Evil-v0", ["evil:Evil-v0"], []),
        ("ray.ship: [evil.py]", ["--ray.ship", "[evil.py]"], []),
        ("network.factory: torch.nn:Linear", [], []),
        ("env.id: CartPole-v1", [], []),
        ("env.id: gymnasium.envs:CartPole-v1", [], []),
        ("seed: 2", ["evil:Evil-v0"], []),
        ("seed: 2", ["--env.factory", "evil:env"], []),
    ],
)
def test_load_config_refuses_code_that_only_a_file_names(
    evil: Path, text: str, words: list[str], keys: list[str]
) -> None:
    (evil / "run.yaml").write_text(text)

    assert refused("--config", "run.yaml", *words) == keys
    assert "evil" not in sys.modules


def test_refusal_names_the_file_and_both_remedies(evil: Path) -> None:
    (evil / "run.yaml").write_text("seed: 1\nenv: {factory: 'evil:env'}\n")

    with pytest.raises(ConfigError) as caught:
        load_config(None, ["run.yaml"])

    assert str(caught.value).splitlines()[1] == (
        "  env.factory = evil:env (run.yaml:2): is named by a file, and evil is no installed "
        "package: it is not imported; if you trust the file add --allow-code, or say it yourself: "
        "--env.factory evil:env"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evil:Evil-v0"], True),
        (["--env.factory", "evil:env"], True),
        (["--network.factory", "evil:n"], True),
        (["--ray.ship", "[a.py]"], True),
        (["CartPole-v1", "--config", "run.yaml"], False),
        (["--seed", "1"], False),
    ],
)
def test_names_own_code_hears_the_users_own_words(words: list[str], expected: bool) -> None:
    arguments = parse_train_arguments(words)

    assert names_own_code(arguments.target, arguments.settings) is expected


def test_allow_code_takes_no_value() -> None:
    assert refused("--allow-code=true") == ["--allow-code"]
