"""Every command and every Python block that the pages print works, with tiny budgets."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qfleet.command_line import cli
from qfleet.command_line.cli_flags import parse_train_arguments
from qfleet.command_line.command_flags import parser_of
from qfleet.commands.bench import parts_of
from qfleet.common.errors import ConfigError
from qfleet.settings.config_loading import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(qfleet (?:train|eval|play|status|bench|doctor|config)\b[^`]*)`")
PLACEHOLDERS = re.compile(
    r"…|\.\.\.|\b(NAME|FILE|RUN|DIR|ID|COMMAND|TARGET|SECTION|PRESET)\b|[\[\]]"
)
PRELUDE = """
import qfleet
_preset = qfleet.Config.preset
_TINY = {"runtime": "local", "run.max_learner_steps": 100, "eval.episodes": 2,
         "eval.confirm_episodes": 2, "eval.period_learner_steps": 50, "learner.compile": "off",
         "actors.count": 1, "metrics.console": "none"}
qfleet.Config.preset = lambda name, overrides=None: _preset(name, {**(overrides or {}), **_TINY})
_evaluate = qfleet.evaluate
qfleet.evaluate = lambda *a, **k: _evaluate(*a, **{**k, "episodes": 2})
"""


def commands_of(page: Path) -> list[str]:
    """Each `qfleet …` of the page's blocks and texts, without prompt, comment and redirection."""
    text = page.read_text()
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    found = []
    for line in lines:
        for part in re.split(r";|&&|\|", line.removeprefix("$ ")):
            command = part.strip().removeprefix("do ").split(" #")[0].strip()
            if command.startswith("qfleet ") and not command.startswith("qfleet: "):
                found.append(command)
    found += INLINE.findall(FENCE.sub("", text))
    plain = [c.replace("$seed", "3").replace("\n", " ").split(" > ")[0] for c in found]
    return [command for command in plain if not PLACEHOLDERS.search(command)]


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands_of(page)})
REFUSED = "qfleet train --actor.count 4 --gamma 0.9"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the configuration file that the README shows."""
    (tmp_path / "my_env.py").touch()  # what a page ships must be there
    monkeypatch.chdir(tmp_path)
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    (tmp_path / "run.yaml").write_text(next(text for kind, text in blocks if kind == "yaml"))
    return tmp_path


def test_pages_print_commands_of_every_kind() -> None:
    kinds = {command.split()[1] for _, command in COMMANDS}

    assert kinds >= {"train", "eval", "play", "status", "doctor", "bench", "config"}
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1] != REFUSED])
def test_command_of_a_page_is_accepted(page: str, command: str) -> None:
    _, name, *words = shlex.split(command)
    if "--help" in words or "--help-all" in words or (name == "config" and words[0] != "show"):
        assert cli.main([name, *words]) == 0
    elif name in ("train", "config"):
        arguments = parse_train_arguments(words if name == "train" else words[1:])
        load_config(
            arguments.target,
            arguments.files,
            arguments.settings,
            problems=arguments.problems,
            allow_code=True,
        )
    else:
        parsed = parser_of(name).parse_args(words)
        if name == "bench":
            assert parts_of(parsed.name)


def test_refusal_that_the_readme_shows_is_the_one_that_comes() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text[text.index(f"$ {REFUSED}\nqfleet: ") :].split("qfleet: ", 1)[1].split("\n```")[0]
    arguments = parse_train_arguments(shlex.split(REFUSED)[2:])

    with pytest.raises(ConfigError) as caught:
        load_config(None, [], arguments.settings, problems=arguments.problems)

    assert str(caught.value) == shown


PYTHON = [
    (page.name, block)
    for page in PAGES
    for kind, block in FENCE.findall(page.read_text())
    if kind == "python"
]


def test_python_blocks_run_with_tiny_budgets(elsewhere: Path) -> None:
    """One process for all of them; a block that begins with `# file.py` is that file."""
    program = [PRELUDE]
    example = (ROOT / "examples" / "custom_env.py").read_text()
    for _, block in PYTHON:
        first = block.splitlines()[0]
        if first.startswith("# ") and first.endswith(".py"):
            (elsewhere / first.removeprefix("# ")).write_text(block)
        elif first.startswith("class "):  # an excerpt: its lines are those of the example
            for line in filter(str.strip, block.splitlines()):
                assert re.sub(r"\W", "", line) in re.sub(r"\W", "", example), line
        elif "import ray" in block:
            compile(block, "page", "exec")  # tests/integration trains within a program's Ray
        else:
            program.append(block)
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT)])

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": search, "SDL_VIDEODRIVER": "dummy"},
        timeout=180,
    )

    assert len(program) >= 4
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link
