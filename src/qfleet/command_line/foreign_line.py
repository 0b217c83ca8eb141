"""Several settings of another program as one line to paste, and what of the preset remains.

Called by config_loading.py below the list of what cannot be used.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from qfleet.command_line.foreign_conversions import Scales, show
from qfleet.command_line.foreign_names import convert
from qfleet.settings.config import Config
from qfleet.settings.yaml_settings import Setting

_ALGORITHM = {
    "actors.n_step": "n-step returns",
    "learner.double_q": "double Q-learning",
    "learner.loss": "loss",
    "learner.optimizer": "optimizer",
}
"""What makes another algorithm of it without a flag of theirs saying so."""
_THEIRS = "--actors.n_step 1 --learner.double_q false --learner.optimizer adam"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command: TARGET, files, and all settings of files and flags in order."""

    target: str | None
    files: Sequence[str]
    given: Sequence[Setting]


def foreign_line(asked: Asked, unknown: Sequence[Setting], scales: Scales, config: Config) -> str:
    """The lines below an error message; empty unless two foreign names can be converted.

    Args:
        asked: What was asked for.
        unknown: The settings in it that are not keys.
        scales: As the single messages were converted.
        config: What the rest of the command comes to.
    """
    flags = [s for s in unknown if s.origin.startswith("--")]
    converted = _converted(flags or unknown, scales)
    if len(converted) < 2:
        return ""
    keys = {key for answer in converted for key, _ in answer}
    answers = {key: value for answer in converted for key, value in answer}
    line = _command(asked, unknown, answers) if flags else _yaml(answers)
    stays = ", ".join(
        f"{name} ({key} {show(_value(config, key))})"
        for key, name in _ALGORITHM.items()
        if key not in keys and not _is_given(asked, key)
    )
    remains = (
        f"\n  From preset '{config.preset_name}' remain: {stays}. Plain DQN of Stable-Baselines3 "
        f"and CleanRL: {_THEIRS}, loss huber or mse"
        if stays
        else ""
    )
    return f"\nTogether, to paste:\n  {line}{remains}"


def _converted(settings: Sequence[Setting], scales: Scales) -> list[list[tuple[str, object]]]:
    """What each foreign name becomes; left out where nothing is to be set or a number is open."""
    found = (convert(setting.path[-1], setting.value, scales) for setting in settings)
    answers = [answer for answer, _ in (item for item in found if item is not None) if answer]
    return [a for a in answers if all(value not in _OPEN for _, value in a)]


_OPEN = ("LEARNER_STEPS", "ENV_STEPS")


def _command(asked: Asked, unknown: Sequence[Setting], answers: dict[str, object]) -> str:
    words = ["qfleet", "train"]
    if asked.target is not None:
        words.append(asked.target)
    for name in asked.files:
        words += ["--config", name]
    for setting in asked.given:
        ours = setting.origin.startswith("--") and setting not in unknown
        if ours and setting.key not in answers:
            words += [f"--{setting.key}", _text(setting)]
    for key, value in answers.items():
        words += [f"--{key}", show(value)]
    return shlex.join(words)


def _text(setting: Setting) -> str:
    return show(setting.value) if setting.text is None else setting.text


def _yaml(answers: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {show(value)}" for key, value in answers.items()) + "}"


def _is_given(asked: Asked, key: str) -> bool:
    return any(setting.key == key for setting in asked.given)


def _value(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
